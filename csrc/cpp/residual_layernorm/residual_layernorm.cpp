// The end of one branch and the start of the next, fused: the row of h is normalised while it is still in the L1 cache.
// Apart, the two would read h from memory once more, and backward what layernorm had just written: forward 24 bytes a
// number instead of 28, backward 20 instead of 28, the lines of the outputs read before they are overwritten among
// them. Large outputs that nothing here reads again go past the caches and save 4 of those. The arithmetic is
// layernorm's, see layernorm/row.h.
#include "residual_layernorm.h"

#include "layernorm/row.h"

namespace minigpt {

void residual_layernorm_forward(const float* x, const float* residual, const float* weight, const float* bias,
                                int64_t rows, int64_t C, float eps, float* h, float* y, float* mean, float* rstd) {
  const bool streamed = exceeds_cache(rows * C);
  parallel_for(rows, rows_per_piece(C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      float* row = h + r * C;
      mean[r] = sum_over(C,
                         [&](int64_t i, auto at) {
                           vec v = at.load(x + r * C + i) + at.load(residual + r * C + i);
                           at.store(row + i, v);
                           return v;
                         }) /
                C;
      rstd[r] = row_rstd(row, mean[r], C, eps);
      normalise_row(row, weight, bias, mean[r], rstd[r], C, streamed, y + r * C);
    }
    if (streamed) streaming_done();
  });
}

void residual_layernorm_backward(const float* dh, const float* dy, const float* h, const float* weight,
                                 const float* mean, const float* rstd, int64_t rows, int64_t C, bool accumulate,
                                 float* dx, float* dweight, float* dbias) {
  const bool streamed = exceeds_cache(rows * C) && dx != dh;
  backward_rows(dh, dy, h, weight, mean, rstd, rows, C, accumulate, streamed, dx, dweight, dbias);
}

}  // namespace minigpt
