// Fibers: a thread of the GPU is a stack of its own on the CPU. Switching to another is to save the registers that must
// survive, to change the stack pointer, and to restore: a dozen instructions on x86-64 (runtime.h, inlined) and on
// arm64; elsewhere the C library does it (ucontext), twenty times slower.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "runtime.h"

namespace emulator {
namespace {

constexpr size_t STACK = 256 << 10;  // of address space; the system gives memory to the pages that are touched
constexpr size_t PAGE = 64 << 10;  // at least: the lowest part of a stack is closed, so that overflowing it is a fault

int fibers_made = 0;

}  // namespace

char *stacks = nullptr, *stacks_end = nullptr;

Fiber* new_fiber(void (*main)()) {
  if (stacks == nullptr) {
    void* space =
        mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED) {
      std::fprintf(stderr, "minigpt emulator: no memory for the stacks of %d threads\n", MAX_THREADS);
      std::abort();
    }
    stacks = static_cast<char*>(space);
    stacks_end = stacks + STACK * MAX_THREADS;
  }
  char* bottom = stacks + STACK * static_cast<size_t>(fibers_made);
  mprotect(bottom, PAGE, PROT_NONE);
  Fiber* fiber = new Fiber;
  // Stacks that began at multiples of 256 KiB would fight for the same few lines of the cache: begin each a bit lower.
  fiber->top = bottom + STACK - static_cast<size_t>(fibers_made % 64) * 1088;
  fiber->main = main;
  ++fibers_made;
  restart(fiber);
  return fiber;
}

Fiber* fiber_of_caller() {
  static Fiber fiber;
  return &fiber;
}

// The address sanitizer remembers the frames of the functions that are left.
static void forget_frames([[maybe_unused]] Fiber* fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber->top - (STACK - 3 * PAGE), STACK - 3 * PAGE);
#endif
}

#if defined(__x86_64__)
// As switch_fiber() leaves a stack: where to go on, and the frame pointer. main begins as if it had been called.
void restart(Fiber* fiber) {
  forget_frames(fiber);
  void** top = reinterpret_cast<void**>(fiber->top);
  *--top = nullptr;  // nobody to return to
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(fiber->main);
  fiber->stack_pointer = top;
}
#elif defined(__aarch64__)
// The registers that a call preserves go on the stack, the stack pointer into *from; then the same backwards.
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, %function
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulator_switch, .-emulator_switch
)");

void restart(Fiber* fiber) {
  forget_frames(fiber);
  void** top = reinterpret_cast<void**>(fiber->top) - 20;
  std::fill(top, top + 20, nullptr);
  top[11] = reinterpret_cast<void*>(fiber->main);  // x30: the first switch returns into it
  fiber->stack_pointer = top;
}
#else
void restart(Fiber* fiber) {
  forget_frames(fiber);
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->top - STACK + 2 * PAGE;
  fiber->context.uc_stack.ss_size = STACK - 2 * PAGE;
  makecontext(&fiber->context, fiber->main, 0);
}
#endif

}  // namespace emulator
