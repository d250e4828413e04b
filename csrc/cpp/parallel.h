// The one place where kernels meet threads. With OpenMP the threads are OpenMP's, which torch shares, so that the two
// do not fight over cores; without it (macOS, or a build for the thread sanitizer) they are a small pool of our own.
//
// A kernel splits its work in pieces whose results do not depend on which thread does them: results are then the same
// for any number of threads, bit for bit.
#pragma once
#include <cstdint>

namespace minigpt {

int num_threads();
void set_num_threads(int n);  // n >= 1; the default is OMP_NUM_THREADS, or else the number of cores

// Pieces large enough (16 K floats, 5 us or more) for waking a thread to pay; a single piece runs where it is.
constexpr int64_t PIECE = 16384;
inline int64_t rows_per_piece(int64_t C) { return C < PIECE ? PIECE / C : 1; }

// Calls run(context, i) for i in 0 .. n-1, each once, by several threads; returns when all are done.
void parallel_run(int64_t n, void (*run)(const void* context, int64_t i), const void* context);

// parallel_for(n, grain, [&](int64_t begin, int64_t end) {...}): the range 0 .. n-1 in pieces of `grain`.
template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  struct Task {
    const Body& body;
    int64_t n, grain;
  } task{body, n, grain};
  parallel_run((n + grain - 1) / grain,
               [](const void* context, int64_t i) {
                 const Task& t = *static_cast<const Task*>(context);
                 int64_t end = (i + 1) * t.grain;
                 t.body(i * t.grain, end < t.n ? end : t.n);
               },
               &task);
}

}  // namespace minigpt
