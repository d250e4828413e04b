// What the scheduler, the warp operations and the copies tell the checks, and what the checks and the counters share.
// All of it does nothing unless somebody watches: the library was compiled with the compiler's reports of reads and
// writes (checked), and the launch is one of its kernels.
#pragma once

#include "runtime.h"

namespace emulator {

enum Kind : uint8_t { READ, WRITE, ATOMIC };
enum Space : uint8_t { GLOBAL, SHARED };

// A place in a kernel in 32 bits: an offset into the library's machine code, or with the top bit set the number of a
// Where that was seen.
using Code = uint32_t;
Place place_of(Code code);
Code code_of(Where where);
Code code_of(const void* return_address);

// The current thread is about to touch memory.
void saw(const void* address, size_t bytes, Kind kind, Code code);

namespace checks {

void before_launch();
void before_block();
void after_launch(bool cut_short);
void after_barrier();
void after_warp_barrier(uint32_t mask);

void before_copy(const AsyncCopy& copy);        // issued: its bytes must not be touched ...
void after_copy(const AsyncCopy& copy);         // ... until now, when the current thread has waited for it
void shared_row(const void* row, Where where);  // the current lane has 16 bytes read by ldmatrix

void allocated(void* pointer, size_t bytes, Where where);  // global memory: it holds nothing yet
void released(void* pointer);
void filled(const void* pointer, size_t bytes);

bool is_of_cpu(const void* pointer);  // surely: it is near no array that Python handed over, and no variable of the GPU
bool array_around(const void* pointer, const char*& begin, const char*& end, const char*& name);  // one of Python's

const char* array_of(uint64_t address, int64_t& offset);  // its name, and where in it the address is

// The arrays that Python hands to a kernel: all are added, then each address is exchanged for that of a guarded copy.
void add_array(const char* name, void* address, size_t bytes, size_t element, bool writable);
void* guarded(void* address);
void copy_back();
void forget_arrays();

}  // namespace checks

struct Json;

// Counts of a launch: what each line of a kernel read and wrote, by whole warps.
namespace counters {

void before_launch();  // of `launched`
void after_launch(bool cut_short);
void static_shared(size_t bytes);  // of the block, as far as it is known
void before_block();
void log(uint64_t address, size_t bytes, Space space, Kind kind, Code code);
void flush(
    int warp);  // its lanes are at the same point: what they did since the last time is counted, lane beside lane
void flush_all();
void barrier();
void tensor_flops(int64_t flops);
void passed(const char* kind, Where where, bool left_out);  // a thread is where emulator_skip() could leave it out
void clear();
void write(Json& json);  // the fields "kernels", "lines", "sites", "trace"

}  // namespace counters
}  // namespace emulator
