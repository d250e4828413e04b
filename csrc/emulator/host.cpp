// The launcher that Python calls is code of the CPU, in Python's own process. What would end that process, an exception,
// exit(), a wild pointer, a failed assert(), ends the call instead and becomes a finding (signals: faults.cpp).
#include <cxxabi.h>
#include <pthread.h>
#include <setjmp.h>

#include <exception>
#include <typeinfo>

#include "runtime.h"

namespace emulator {

const char* launcher = nullptr;
const void* thrown_at = nullptr;

namespace {

sigjmp_buf way_out;
pthread_t caller;

}  // namespace

const char* const ON_HOST = "This is code of the CPU, outside of any kernel; the launcher was ended here.";

bool in_launcher() { return launcher != nullptr && pthread_equal(pthread_self(), caller); }

void leave_launcher(const char* words, Place here, const char* mend) {
  found("launcher", words, mend, here);
  siglongjmp(way_out, 1);
}

void leave_launcher() { siglongjmp(way_out, 1); }

// Where: if it was the file's own `throw`, and not one of a function that it calls.
static void threw(const char* what) {
  found("launcher", text(thrown_at != nullptr ? "the launcher throws %s in {0}" : "the launcher throws %s", what),
        ON_HOST, Place(thrown_at));
}

// A program's end, asked for in the middle of ours.
[[noreturn]] static void refuse(const char* call, int status, const void* from) {
  const Place here(static_cast<const char*>(from) - 1);
  if (in_launcher() && current == nullptr) leave_launcher(text("the launcher calls %s(%d) in {0}", call, status), here);
  if (in_launcher()) {
    found("trap", text("thread %d calls %s(%d) in {0}, which a GPU does not have", current->id, call, status), "",
          here);
    end_launch();
  }
  std::fprintf(stderr, "minigpt emulator: %s(%d) was called outside of a launcher\n", call, status);
  std::abort();
}

}  // namespace emulator

using namespace emulator;

// What minigpt/emulator/launchers.py puts around a launcher.
extern "C" void emulator_call(const char* name, void (*call)(void*), void* arguments) {
  caller = pthread_self();
  launcher = name;
  faults::before_call();
  if (sigsetjmp(way_out, 0) == 0) {
    try {
      call(arguments);
    } catch (const std::exception& e) {
      char* name = abi::__cxa_demangle(typeid(e).name(), nullptr, nullptr, nullptr);
      threw(text("%s (%s)", name != nullptr ? name : typeid(e).name(), e.what()));
      std::free(name);
    } catch (...) {
      threw("an exception");
    }
  }
  faults::after_call();
  launcher = nullptr;
}

#if defined(__linux__)
// The linker turns a kernel file's calls of these into calls of ours (--wrap).
extern "C" {
[[noreturn]] void __wrap_exit(int status) { refuse("exit", status, __builtin_return_address(0)); }
[[noreturn]] void __wrap__exit(int status) { refuse("_exit", status, __builtin_return_address(0)); }
[[noreturn]] void __wrap__Exit(int status) { refuse("_Exit", status, __builtin_return_address(0)); }
[[noreturn]] void __wrap_quick_exit(int status) { refuse("quick_exit", status, __builtin_return_address(0)); }

[[noreturn]] __attribute__((weak)) void __real___cxa_throw(void*, void*, void (*)(void*));
[[noreturn]] void __wrap___cxa_throw(void* thrown, void* type, void (*destroy)(void*)) {
  thrown_at = static_cast<const char*>(__builtin_return_address(0)) - 1;
  __real___cxa_throw(thrown, type, destroy);
}

// The first that a `throw` does is to ask for memory of the CPU, for the exception.
__attribute__((weak)) void* __real___cxa_allocate_exception(size_t bytes);
void* __wrap___cxa_allocate_exception(size_t bytes) {
  if (in_launcher() && current != nullptr) {
    found("trap", text("thread %d throws an exception in {0}, which a GPU does not have", current->id), "",
          Place(static_cast<const char*>(__builtin_return_address(0)) - 1));
    end_launch();
  }
  return __real___cxa_allocate_exception(bytes);
}

// assert() calls this when it fails.
[[noreturn]] void __assert_fail(const char* words, const char* file, unsigned line, const char* function) {
  const Where here(file, static_cast<int>(line));
  if (in_launcher() && current != nullptr) {
    found("trap", text("thread %d finds that assert(%s) in {0} does not hold", current->id, words), "", here);
    end_launch();
  }
  if (in_launcher()) leave_launcher(text("the launcher finds that assert(%s) in {0} does not hold", words), here);
  std::fprintf(stderr, "%s:%u: %s: assert(%s) does not hold\n", file, line, function, words);
  std::abort();
}
}
#endif
