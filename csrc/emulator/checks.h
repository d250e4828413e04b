// What the scheduler and the warp operations tell the checks. All of it does nothing unless somebody watches.
#pragma once
#include "runtime.h"

namespace emulator::checks {

void before_launch();
void before_block();
void after_launch();
void after_barrier();
void after_warp_barrier(uint32_t mask);
void before_copy(const AsyncCopy& copy);        // issued: its bytes must not be touched ...
void after_copy(const AsyncCopy& copy);         // ... until now, when the current thread has waited for it
void shared_row(const void* row, Where where);  // the current lane has 16 bytes read by ldmatrix

void allocated(void* pointer, size_t bytes, Where where);  // global memory: it holds nothing yet
void released(void* pointer);
void filled(void* pointer, size_t bytes);

}  // namespace emulator::checks
