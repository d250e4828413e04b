// layernorm without the mean: see layernorm/ for the ladder that leads here. Forward 12 bytes of memory and 4 FLOPs a
// number, backward 16 bytes and 11 FLOPs; 4 bytes less where the output is large and goes past the caches.
#include "rmsnorm.h"

#include <cmath>

#include "row_sums.h"
#include "simd.h"

namespace minigpt {

void rmsnorm_forward(const float* x, const float* weight, int64_t rows, int64_t C, float eps, float* y, float* rstd) {
  const bool streamed = exceeds_cache(rows * C);
  parallel_for(rows, rows_per_piece(C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const float* row = x + r * C;
      float squares = sum_over(C, [&](int64_t i, auto at) { return at.load(row + i) * at.load(row + i); });
      float scale = rstd[r] = 1 / std::sqrt(squares / C + eps);
      auto body = [&](int64_t i, auto at) { at.stream(y + r * C + i, at.load(row + i) * scale * at.load(weight + i)); };
      streamed ? each_vector_streamed(y + r * C, C, body) : each_vector(C, body);
    }
    if (streamed) streaming_done();
  });
}

// dx = rstd * (dxhat - xhat * mean(dxhat * xhat)) with xhat = x * rstd and dxhat = dy * weight.
static void backward_row(const float* dy, const float* x, const float* weight, float rstd, int64_t C, bool streamed,
                         float* dx, float* dweight) {
  float mean_dxhat_xhat =
      sum_over(C, [&](int64_t i, auto at) { return at.load(dy + i) * at.load(weight + i) * (at.load(x + i) * rstd); }) /
      C;
  auto body = [&](int64_t i, auto at) {
    vec xhat = at.load(x + i) * rstd, d = at.load(dy + i);
    at.store(dweight + i, at.load(dweight + i) + d * xhat);
    at.stream(dx + i, rstd * (d * at.load(weight + i) - xhat * mean_dxhat_xhat));
  };
  streamed ? each_vector_streamed(dx, C, body) : each_vector(C, body);
}

void rmsnorm_backward(const float* dy, const float* x, const float* weight, const float* rstd, int64_t rows, int64_t C,
                      bool accumulate, float* dx, float* dweight) {
  const bool streamed = exceeds_cache(rows * C);
  sum_over_rows(
      rows, C,
      [&](int64_t begin, int64_t end, float* sums) {
        for (int64_t r = begin; r < end; r++) {
          backward_row(dy + r * C, x + r * C, weight, rstd[r], C, streamed, dx + r * C, sums);
        }
        if (streamed) streaming_done();
      },
      [&](int64_t i, float total) { dweight[i] = accumulate ? dweight[i] + total : total; });
}

}  // namespace minigpt
