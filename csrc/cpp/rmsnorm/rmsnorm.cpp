// layernorm without the mean: see layernorm/ for the ladder that leads here. Forward 8 bytes of memory and 4 FLOPs a
// number, backward 12 bytes and 11 FLOPs.
#include "rmsnorm.h"

#include <cmath>

#include "row_sums.h"
#include "simd.h"

namespace minigpt {

void rmsnorm_forward(const float* x, const float* weight, int64_t rows, int64_t C, float eps, float* y, float* rstd) {
  parallel_for(rows, rows_per_piece(C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const float* row = x + r * C;
      float squares = sum_over(C, [&](int64_t i, auto at) { return at.load(row + i) * at.load(row + i); });
      float scale = rstd[r] = 1 / std::sqrt(squares / C + eps);
      each_vector(C,
                  [&](int64_t i, auto at) { at.store(y + r * C + i, at.load(row + i) * scale * at.load(weight + i)); });
    }
  });
}

// dx = rstd * (dxhat - xhat * mean(dxhat * xhat)) with xhat = x * rstd and dxhat = dy * weight.
static void backward_row(const float* dy, const float* x, const float* weight, float rstd, int64_t C, float* dx,
                         float* dweight) {
  float mean_dxhat_xhat =
      sum_over(C, [&](int64_t i, auto at) { return at.load(dy + i) * at.load(weight + i) * (at.load(x + i) * rstd); }) /
      C;
  each_vector(C, [&](int64_t i, auto at) {
    vec xhat = at.load(x + i) * rstd, d = at.load(dy + i);
    at.store(dweight + i, at.load(dweight + i) + d * xhat);
    at.store(dx + i, rstd * (d * at.load(weight + i) - xhat * mean_dxhat_xhat));
  });
}

void rmsnorm_backward(const float* dy, const float* x, const float* weight, const float* rstd, int64_t rows, int64_t C,
                      bool accumulate, float* dx, float* dweight) {
  sum_over_rows(
      rows, C,
      [&](int64_t begin, int64_t end, float* sums) {
        for (int64_t r = begin; r < end; r++) {
          backward_row(dy + r * C, x + r * C, weight, rstd[r], C, dx + r * C, sums);
        }
      },
      [&](int64_t i, float total) { dweight[i] = accumulate ? dweight[i] + total : total; });
}

}  // namespace minigpt
