// layernorm, rung 3: rows are shared out among threads.
//
// Forward rows are independent. Backward rows all add to dweight and dbias, so each chunk of rows has sums of its own
// (row_sums.h), which also makes the sums shorter and the rounding less. The bytes and FLOPs are rung 2's.
// measured: 28.1 GB/s, 50% of the memory's limit, layernorm forward (8192, 1600)
// measured: 21.6 GB/s, 39% of the memory's limit, layernorm backward (8192, 1600)
// measured: on AMD EPYC (family 25 model 17, avx512), 2 threads, 2026-11
#include "layernorm.h"
#include "row.h"

namespace minigpt {

void layernorm_forward_threads(const float* x, const float* weight, const float* bias, int64_t rows, int64_t C,
                               float eps, float* y, float* mean, float* rstd) {
  parallel_for(rows, rows_per_piece(C), [&](int64_t begin, int64_t end) {
    int64_t at = begin * C;
    layernorm_forward_vectorised(x + at, weight, bias, end - begin, C, eps, y + at, mean + begin, rstd + begin);
  });
}

void layernorm_backward_threads(const float* dy, const float* x, const float* weight, const float* mean,
                                const float* rstd, int64_t rows, int64_t C, bool accumulate, float* dx, float* dweight,
                                float* dbias) {
  backward_rows(nullptr, dy, x, weight, mean, rstd, rows, C, accumulate, false, dx, dweight, dbias);
}

}  // namespace minigpt
