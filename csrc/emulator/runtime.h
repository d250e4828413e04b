// The inside of the emulator: what its own files know of each other. A kernel sees cuda_on_cpu.h only.
//
// Everything is in one place because everything happens one after another: one launch at a time (a lock sees to it), one
// block at a time, one thread at a time. A thread runs until it has to wait for others; then the next one runs.
#pragma once
#define EMULATOR_RUNTIME 1
#include <vector>

#include "cuda_on_cpu.h"

namespace emulator {

constexpr int WARP = 32, MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / WARP;
constexpr size_t MAX_DYNAMIC_SHARED = 256 << 10;

// ------------------------------------------------------------------------------------------------- fibers: fibers.cpp

struct Fiber;                               // a stack, and where its code stopped
Fiber* new_fiber(void (*main)());           // `main` must not return
void restart(Fiber*);                       // it begins anew, what it was doing is forgotten
void switch_fiber(Fiber* from, Fiber* to);  // continues `to`; returns when somebody switches back
Fiber* fiber_of_caller();                   // for the code that is on no fiber of ours
bool on_fiber_stack(const void* address);   // is it a local variable of some thread?

// ------------------------------------------------------------------------------------------- threads: scheduler.cpp

// A warp operation: the lanes of a mask meet, and the last to come does the work for all, meet(lanes, mask); lanes[i] is
// what lane i handed in. `whole` operations (tensor cores) need all 32 lanes.
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
  const Operation* waits_for = nullptr;  // what it waits in: a warp operation ...
  uint32_t mask = 0;
  void* args = nullptr;
  bool at_barrier = false;  // ... or the block's barrier
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

// ---------------------------------------------------------------------------------------------- memory.cpp, the API

void set_last_error(cudaError_t error);  // what cudaGetLastError() will return
size_t dynamic_shared_allowed();         // the most that cudaFuncSetAttribute() has asked for
void finish_copies(Thread& t);           // does what is left of a thread's asynchronous copies

// ---------------------------------------------------------------------------------------- what Python sets: report.cpp

enum Order { FORWARD, REVERSED, SHUFFLED };
struct Options {
  int warp_order = FORWARD, block_order = FORWARD, seed = 0;
  int copies_early = false;  // an asynchronous copy is done when it is issued, instead of when it is waited for
  int trace = 0;             // how many warps' accesses to record
  int capability = 80;       // of the GPU whose limits hold: 75, 80, 86, 89, 90, 100, 120
};
extern Options options;
bool skipped(const char* kind, Where where);  // has Python asked to leave out the barrier or wait that stands there?

struct Place {
  const char* file = nullptr;  // known at once ...
  int line = 0;
  const void* code = nullptr;  // ... or an address in the kernel's machine code, which Python looks up
  Place() = default;
  Place(Where where) : file(where.file), line(where.line) {}
  explicit Place(const void* code) : code(code) {}
};
// Something is wrong. `words` says what, with {0} and {1} for the two places, and `mend` what usually mends it.
void found(const char* kind, const char* words, const char* mend, Place here, Place other = Place());
bool found_again(const char* kind, Place here, Place other);  // counts it, if it was found before
const char* text(const char* format, ...);                    // printf into one of a few buffers, for the words above

}  // namespace emulator
