// The layer: a product forward, two backward, and the gradient of the bias, a sum over the rows of dy that reads 4 M N
// bytes for M N FLOPs.
#include "linear.h"

#include "row_sums.h"

namespace minigpt {

void linear_forward(product_function* product, const float* x, const float* weight, const float* bias, int64_t M,
                    int64_t N, int64_t K, float* y, float* gelu) {
  product({M, N, K, {x, K, 1}, Matrix{weight, K, 1}.transposed(), y, bias, false, gelu});
}

void linear_backward(product_function* product, const float* dy, const float* x, const float* weight, int64_t M,
                     int64_t N, int64_t K, bool accumulate, float* dx, float* dweight, float* dbias) {
  Matrix dy_rows{dy, N, 1};
  if (dx) product({M, K, N, dy_rows, {weight, K, 1}, dx});
  product({N, K, M, dy_rows.transposed(), {x, K, 1}, dweight, nullptr, accumulate});
  if (!dbias) return;
  sum_over_rows(
      M, N,
      [&](int64_t begin, int64_t end, float* sums) {
        for (int64_t i = begin; i < end; i++) {
          for (int64_t j = 0; j < N; j++) sums[j] += dy[i * N + j];
        }
      },
      [&](int64_t j, float total) { dbias[j] = accumulate ? dbias[j] + total : total; });
}

}  // namespace minigpt
