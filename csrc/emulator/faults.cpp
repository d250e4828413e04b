// What would end the process ends the launch: a wild pointer in the fast build, a division by zero, a stack that
// overflows, an assert() that fails. Each becomes a finding. Ctrl-C ends a launch too, if Python would stop there.
//
// The signal's handler runs on a stack of its own and does not return: it goes on where the launch began.
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include "runtime.h"

namespace emulator {

volatile bool interrupted = false;

namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGINT};
constexpr int COUNT = sizeof SIGNALS / sizeof *SIGNALS;
struct sigaction before[COUNT];
stack_t stack_before;
alignas(16) char handler_stack[64 << 10];
pthread_t launching;
bool installed = false;

const void* code_in(const void* context) {
  [[maybe_unused]] auto c = static_cast<const ucontext_t*>(context);
#if defined(__linux__) && defined(__x86_64__)
  return reinterpret_cast<const void*>(c->uc_mcontext.gregs[REG_RIP]);
#elif defined(__linux__) && defined(__aarch64__)
  return reinterpret_cast<const void*>(c->uc_mcontext.pc);
#elif defined(__APPLE__) && defined(__x86_64__)
  return reinterpret_cast<const void*>(c->uc_mcontext->__ss.__rip);
#elif defined(__APPLE__) && defined(__aarch64__)
  return reinterpret_cast<const void*>(c->uc_mcontext->__ss.__pc);
#else
  return nullptr;
#endif
}

bool in_this_library(const void* code) {
  Dl_info its, mine;
  return code != nullptr && dladdr(code, &its) != 0 && dladdr(before, &mine) != 0 && its.dli_fbase == mine.dli_fbase;
}

void report(int signal, const void* address, const void* code) {
  bool known = in_this_library(code);
  const char* where = known ? "in {0}" : "in the kernel launched in {0}";
  Place place = known ? Place(code) : Place(launched->where);
  if (signal == SIGFPE) {
    found("arithmetic", text("thread %d divides an integer by zero %s", current->id, where),
          "A GPU goes on, with a number that means nothing: check the divisor first.", place);
  } else if (on_fiber_stack(address)) {
    found("stack",
          text("thread %d needs more memory for its local variables than it has (192 KiB) %s", current->id, where),
          "Let recursion end, and put large arrays in shared or global memory.", place);
  } else if (signal == SIGILL) {
    found("trap", text("thread %d comes to an instruction that cannot be executed %s", current->id, where), "", place);
  } else {
    found(
        "out of bounds",
        text("thread %d touches the address 0x%llx %s, which belongs to no array", current->id,
             static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(address)), where),
        "Check pointers and indices before the access; compiled with checked=True, the array is named. The kernel was "
        "ended here, as a GPU would.",
        place);
  }
}

// What would have been done without this file.
void hand_on(int signal, siginfo_t* info, void* context) {
  static int depth = 0;
  for (int i = 0; i < COUNT; ++i) {
    if (SIGNALS[i] != signal) continue;
    const struct sigaction& old = before[i];
    if (old.sa_handler == SIG_IGN && signal == SIGINT) return;
    if (old.sa_handler == SIG_DFL || old.sa_handler == SIG_IGN || depth > 3) {
      ::signal(signal, SIG_DFL);  // what went wrong goes wrong again
      if (signal == SIGINT) raise(signal);
      return;
    }
    ++depth;
    if (old.sa_flags & SA_SIGINFO)
      old.sa_sigaction(signal, info, context);
    else
      old.sa_handler(signal);
    --depth;
  }
}

void handle(int signal, siginfo_t* info, void* context) {
  const bool ours = installed && pthread_equal(pthread_self(), launching) && current != nullptr;
  if (signal != SIGINT && ours) {
    report(signal, info->si_addr, code_in(context));
    end_launch();
  }
  hand_on(signal, info, context);
  if (signal != SIGINT || !ours || !options.interruptible) return;
  // Checked, a kernel looks at `interrupted` whenever it touches memory. A fast one never does.
  const bool now = (interrupted || !launched->checked) && in_this_library(code_in(context));
  interrupted = true;
  if (now) stop(Place(code_in(context)));
}

}  // namespace

namespace faults {

void before_launch() {
  launching = pthread_self();
  stack_t own = {};
  own.ss_sp = handler_stack;
  own.ss_size = sizeof handler_stack;
  sigaltstack(&own, &stack_before);
  struct sigaction action = {}, found_there;
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < COUNT; ++i) {
    sigaction(SIGNALS[i], &action, &found_there);
    if (!(found_there.sa_flags & SA_SIGINFO) || found_there.sa_sigaction != handle) before[i] = found_there;
  }
  installed = true;
}

void after_launch() {
  installed = false;
  for (int i = 0; i < COUNT; ++i) sigaction(SIGNALS[i], &before[i], nullptr);
  sigaltstack(&stack_before, nullptr);
}

}  // namespace faults
}  // namespace emulator

#if defined(__linux__)
// assert() calls this when it fails.
extern "C" [[noreturn]] void __assert_fail(const char* words, const char* file, unsigned line, const char* function) {
  using namespace emulator;
  if (current != nullptr) {
    found("trap", text("thread %d finds that assert(%s) in {0} does not hold", current->id, words), "",
          Where(file, static_cast<int>(line)));
    end_launch();
  }
  std::fprintf(stderr, "%s:%u: %s: assert(%s) does not hold\n", file, line, function, words);
  std::abort();
}
#endif
