// The inside of the emulator: what its own files know of each other. A kernel sees cuda_on_cpu.h only.
//
// Everything is in one place because everything happens one after another: one launch at a time (a lock sees to it),
// one block at a time, one thread at a time. A thread runs until it has to wait for others; then the next one runs.
#pragma once
#define EMULATOR_RUNTIME 1
#include <vector>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

#include "cuda_on_cpu.h"

namespace emulator {

constexpr int WARP = 32, MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / WARP;
constexpr size_t MAX_DYNAMIC_SHARED = 256 << 10, MAX_STATIC_SHARED = 48 << 10;

// ------------------------------------------------------------------------------------------------- fibers: fibers.cpp

struct Fiber {  // a stack, and where its code stopped
  void* stack_pointer = nullptr;
  char* top = nullptr;
  void (*main)() = nullptr;
#if !defined(__x86_64__) && !defined(__aarch64__)
  ucontext_t context;
#endif
};
Fiber* new_fiber(void (*main)());  // `main` must not return
void restart(Fiber*);              // it begins anew, what it was doing is forgotten
Fiber* fiber_of_caller();          // for the code that is on no fiber of ours

extern char *stacks, *stacks_end;
inline bool on_fiber_stack(const void* p) { return p >= stacks && p < stacks_end; }  // a local variable of some thread?

// Continues `to`; returns when somebody switches back.
#if defined(__x86_64__)
// Below what the compiler may use under the stack pointer go the frame pointer and the place to go on; all other
// registers the compiler saves, because they are named as changed. It is inlined, and goes on by a jump: then the CPU
// guesses right where the functions around it return to, since all threads wait in the same functions.
inline __attribute__((always_inline)) void switch_fiber(Fiber* from, Fiber* to) {
  void** save = &from->stack_pointer;
  void* load = to->stack_pointer;
  asm volatile(
      "lea -128(%%rsp), %%rsp\n"
      "push %%rbp\n"
      "lea 1f(%%rip), %%rax\n"
      "push %%rax\n"
      "mov %%rsp, (%0)\n"
      "mov %1, %%rsp\n"
      "pop %%rax\n"
      "pop %%rbp\n"
      "jmp *%%rax\n"
      "1: lea 128(%%rsp), %%rsp\n"
      : "+D"(save), "+S"(load)
      :
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc", "xmm0",
        "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
        "xmm14", "xmm15");
}
#elif defined(__aarch64__)
extern "C" void emulator_switch(void** from, void* to);
inline void switch_fiber(Fiber* from, Fiber* to) { emulator_switch(&from->stack_pointer, to->stack_pointer); }
#else
inline void switch_fiber(Fiber* from, Fiber* to) { swapcontext(&from->context, &to->context); }
#endif

// ------------------------------------------------------------------------------------------- threads: scheduler.cpp

// A warp operation: the lanes of a mask meet, and the last to come does the work for all, meet(lanes, mask); lanes[i]
// is what lane i handed in. `whole` operations (tensor cores) need all 32 lanes.
using Meet = void (*)(void* const* lanes, uint32_t mask);
struct Operation {
  const char* name;
  Meet meet;
  bool whole;
};

struct AsyncCopy {
  char* to;
  const char* from;
  int bytes, valid;
  Where where;
};

struct Thread {
  int id;  // within the block, x fastest
  uint3 index;
  Fiber* fiber = nullptr;
  bool returned = false;
  const Operation* waits_for = nullptr;  // the last warp operation it waited for
  uint32_t mask = 0;
  bool at_barrier = false;  // it waits for the block's barrier
  Where where;
  std::vector<AsyncCopy> copies;  // asynchronous copies under way, oldest first
  std::vector<int> groups;        // how many of them each commit closed
};

extern Thread* current;  // the thread that runs; null outside of a launch
extern const Launch* launched;
extern Thread threads[MAX_THREADS];
extern int64_t block_number;

inline int lane() { return current->id % WARP; }
void meet(const Operation& operation, uint32_t mask, void* args, Where where);
size_t shared_limit();           // bytes of shared memory that a block can have on the GPU emulated
void pause();                    // lets the other lanes of the warp catch up with the current thread
[[noreturn]] void end_launch();  // leaves all threads where they are, and returns from the launch

// ------------------------------------------------------------------------- the launcher: host.cpp, signals: faults.cpp

enum Interruption : int { NONE, CTRL_C, TIME_LIMIT, SAID };
extern volatile Interruption interrupted;  // nothing more is launched
extern const char* launcher;               // the function that Python called, while it runs
extern const void* thrown_at;              // where the last exception was thrown
extern Where copying;                      // the cudaMemcpy() or cudaMemset() under way
bool in_launcher();                        // is this the thread that Python called it from?
namespace faults {
void before_call();
void after_call();
}  // namespace faults

// ---------------------------------------------------------------------------------------------- memory.cpp, the API

struct Allocation {  // by cudaMalloc()
  char* begin;
  size_t bytes;
  Where where;
  bool managed;  // by cudaMallocManaged(): the CPU has access too
};
const Allocation* allocation_of(const void* pointer);  // that it points into, or within GAP of it; null if none
constexpr size_t GAP = 1 << 20;                        // bytes before and behind, where there is nothing
char* map_apart(size_t bytes);
void unmap_apart(char* begin, size_t bytes);
void set_last_error(cudaError_t error);  // what cudaGetLastError() will return
size_t dynamic_shared_allowed();         // the most that cudaFuncSetAttribute() has asked for
void finish_copies(Thread& t);           // does what is left of a thread's asynchronous copies

// ---------------------------------------------------------------------------------------- what Python sets: report.cpp

enum Order { FORWARD, REVERSED, SHUFFLED };
struct Options {
  int warp_order = FORWARD, block_order = FORWARD, seed = 0;
  int copies_early = false;   // an asynchronous copy is done when it is issued, instead of when it is waited for
  int interruptible = false;  // by Ctrl-C
  int trace = 0;              // how many warps' accesses to record
  int timeout = 0;            // milliseconds that a launcher may take; 0: any
  int capability = 80;        // of the GPU whose limits hold: 75, 80, 86, 89, 90, 100, 120
};
extern Options options;
bool skipped(const char* kind, Where where);  // has Python asked to leave out the barrier or wait that stands there?

struct Place {
  const char* file = nullptr;  // known at once ...
  int line = 0;
  const void* code = nullptr;   // ... or an address in the kernel's machine code, which Python looks up; what is there
  const void* callers[7] = {};  // may be the emulator's own: then these called it
  Place() = default;
  Place(Where where) : file(where.file), line(where.line) {}
  explicit Place(const void* code) : code(code) {}
};
// Something is wrong. `words` says what, with {0} and {1} for the two places, and `mend` what usually mends it.
void found(const char* kind, const char* words, const char* mend, Place here, Place other = Place(),
           const Thread* who = current);
// Ctrl-C or the time limit came, the current thread (or the launcher) is there: says so, and ends it.
[[noreturn]] void stop(Place here);
[[noreturn]] void stop_launcher(Place here);
extern const char* const ON_HOST;  // what to say where there is no other help
[[noreturn]] void leave_launcher(const char* words, Place here, const char* mend = ON_HOST);  // returns to Python
[[noreturn]] void leave_launcher();
void across_warps(Place here, Place other);                   // the race found there is one of threads of two warps
bool found_again(const char* kind, Place here, Place other);  // counts it, if it was found before
const char* text(const char* format, ...);                    // printf into one of a few buffers, for the words above

}  // namespace emulator
