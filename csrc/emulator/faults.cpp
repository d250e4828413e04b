// What would end the process ends the launch, or the launcher: a wild pointer, a division by zero, a stack that
// overflows, abort(). Each becomes a finding. Ctrl-C and the time limit end them too.
//
// The signal's handler runs on a stack of its own and does not return: it goes on where the launch, or the call of the
// launcher (host.cpp), began.
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unwind.h>

#include <iterator>

#include "runtime.h"

namespace emulator {

volatile Interruption interrupted = NONE;

namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGINT, SIGALRM};
constexpr int COUNT = sizeof SIGNALS / sizeof *SIGNALS;
struct sigaction before[COUNT];
stack_t stack_before;
itimerval timer_before;
alignas(16) char handler_stack[64 << 10];
pthread_t calling;
bool installed = false, timed = false;  // are the handlers ours? the alarm clock?
int ticks = 0;                          // of the clock, since something asked to stop

// Where it happened, and how far down the stack was.
struct At {
  const void* code = nullptr;
  uint64_t stack = 0;
};
At at(const void* context) {
  [[maybe_unused]] auto c = static_cast<const ucontext_t*>(context);
#if defined(__linux__) && defined(__x86_64__)
  const auto &code = c->uc_mcontext.gregs[REG_RIP], &stack = c->uc_mcontext.gregs[REG_RSP];
#elif defined(__linux__) && defined(__aarch64__)
  const auto &code = c->uc_mcontext.pc, &stack = c->uc_mcontext.sp;
#elif defined(__APPLE__) && defined(__x86_64__)
  const auto &code = c->uc_mcontext->__ss.__rip, &stack = c->uc_mcontext->__ss.__rsp;
#elif defined(__APPLE__) && defined(__aarch64__)
  const auto &code = c->uc_mcontext->__ss.__pc, &stack = c->uc_mcontext->__ss.__sp;
#else
  const uint64_t code = 0, stack = 0;
#endif
  return {reinterpret_cast<const void*>(code), static_cast<uint64_t>(stack)};
}

bool in_this_library(const void* code) {
  Dl_info its, mine;
  return code != nullptr && dladdr(code, &its) != 0 && dladdr(before, &mine) != 0 && its.dli_fbase == mine.dli_fbase;
}

// The code where it happened; or, if that is not of this library (memcpy, strlen), of ours that called it; and on the
// CPU, who called that. Null code if there is none of ours.
Place ours(const void* code) {
  struct Walk {
    const void* from;
    Place found;
    int callers;
    bool past;
  } walk{code, Place(in_this_library(code) ? code : nullptr), 0, false};
  if (walk.found.code != nullptr && current != nullptr) return walk.found;
  _Unwind_Backtrace(
      [](_Unwind_Context* frame, void* argument) {
        Walk& w = *static_cast<Walk*>(argument);
        auto at = reinterpret_cast<const char*>(_Unwind_GetIP(frame));
        if (w.past && in_this_library(at - 1)) {
          if (w.found.code == nullptr)
            w.found.code = at - 1;
          else
            w.found.callers[w.callers++] = at - 1;
          if (current != nullptr || w.callers == std::size(w.found.callers)) return _URC_END_OF_STACK;
        }
        w.past |= at == w.from;
        return _URC_NO_REASON;
      },
      &walk);
  return walk.found;
}

const char* hex(const void* address) {
  return text("0x%llx", static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(address)));
}

void report_in_kernel(int signal, const void* address, Place place) {
  const char* where = place.code != nullptr ? "in {0}" : "in the kernel launched in {0}";
  if (place.code == nullptr) place = Place(launched->where);
  if (signal == SIGFPE) {
    found("arithmetic", text("thread %d divides an integer by zero %s", current->id, where),
          "A GPU goes on, with a number that means nothing: check the divisor first.", place);
  } else if (signal == SIGABRT) {
    found("trap", text("thread %d calls abort() %s", current->id, where), "", place);
  } else if (on_fiber_stack(address)) {
    found("stack",
          text("thread %d needs more memory for its local variables than it has (192 KiB) %s", current->id, where),
          "Let recursion end, and put large arrays in shared or global memory.", place);
  } else if (signal == SIGILL) {
    found("trap", text("thread %d comes to an instruction that cannot be executed %s", current->id, where), "", place);
  } else {
    found(
        "out of bounds",
        text("thread %d touches the address %s %s, which belongs to no array", current->id, hex(address), where),
        "Check pointers and indices before the access; compiled with checked=True, the array is named. The kernel was "
        "ended here, as a GPU would.",
        place);
  }
}

[[noreturn]] void leave_launcher_by(int signal, const void* address, Place place, uint64_t stack) {
  if (copying.file != nullptr) place = Place(copying);
  const char* where = place.file != nullptr || place.code != nullptr ? "in {0}" : "in a function that it calls";
  if (signal == SIGFPE) leave_launcher(text("the launcher divides an integer by zero %s", where), place);
  if (signal == SIGILL) leave_launcher(text("the launcher cannot go on %s: no such instruction", where), place);
  if (signal == SIGABRT && thrown_at != nullptr)
    leave_launcher("the launcher throws an exception in {0} that nobody can catch", Place(thrown_at));
  if (signal == SIGABRT)
    leave_launcher(text("abort() is called %s, by the launcher or by a library that finds its memory damaged", where),
                   place);
  const int64_t from_stack = static_cast<int64_t>(reinterpret_cast<uint64_t>(address) - stack);
  if (std::abs(from_stack) < 8192)  // where locals and calls go, which the compiler makes room for page by page
    leave_launcher(text("the launcher needs more memory for its local variables than the CPU's stack has %s: a "
                        "recursion that does not end, or a large array",
                        where),
                   place);
  leave_launcher(text("the launcher touches the address %s %s, where it has no memory", hex(address), where), place);
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
      if (signal == SIGINT || signal == SIGALRM) raise(signal);
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

void set_clock(int64_t first_ms, int64_t then_ms) {
  itimerval clock = {};
  clock.it_value.tv_sec = first_ms / 1000;
  clock.it_value.tv_usec = static_cast<suseconds_t>(first_ms % 1000 * 1000);
  clock.it_interval.tv_usec = static_cast<suseconds_t>(then_ms * 1000);
  setitimer(ITIMER_REAL, &clock, timed ? nullptr : &timer_before);
  timed = true;
}

// A kernel stops by itself, at its next access, barrier or warp operation, when `interrupted` is set. If it has not done
// so when the clock ticks, it is spinning, and is stopped where it is, unless it is in a function that might hold a lock.
void ask_to_stop(Interruption why, const void* code) {
  if (interrupted == NONE) {
    interrupted = why;
    ticks = 0;
    set_clock(50, 50);
  } else if (++ticks > (in_this_library(code) ? 2 : 20)) {
    const Place known = ours(code);
    if (current != nullptr) stop(known.code != nullptr ? known : Place(launched->where));
    if (launched == nullptr) stop_launcher(known);
  }
}

void handle(int signal, siginfo_t* info, void* context) {
  const bool here = installed && pthread_equal(pthread_self(), calling);
  if (signal == SIGALRM && timed && here) {
    ask_to_stop(TIME_LIMIT, at(context).code);
  } else if (signal == SIGALRM && timed && installed) {
    pthread_kill(calling, SIGALRM);
  } else if (signal == SIGINT) {
    hand_on(signal, info, context);
    if (here && options.interruptible) ask_to_stop(CTRL_C, at(context).code);
  } else if (signal != SIGALRM && here && current != nullptr) {
    report_in_kernel(signal, info->si_addr, ours(at(context).code));
    end_launch();
  } else if (signal != SIGALRM && here && launched == nullptr) {
    leave_launcher_by(signal, info->si_addr, ours(at(context).code), at(context).stack);
  } else {
    hand_on(signal, info, context);
  }
}

}  // namespace

namespace faults {

void before_call() {
  calling = pthread_self();
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
  if (options.timeout > 0) set_clock(options.timeout, 50);
}

void after_call() {
  installed = false;
  if (timed) setitimer(ITIMER_REAL, &timer_before, nullptr);
  timed = false;
  for (int i = 0; i < COUNT; ++i) sigaction(SIGNALS[i], &before[i], nullptr);
  sigaltstack(&stack_before, nullptr);
}

}  // namespace faults
}  // namespace emulator
