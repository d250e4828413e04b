// A linear layer with a weight for every segment of rows: one product after the other, each over the fastest rung of
// linear's ladder, which shares it out among the threads and reads a weight once where an expert has few rows, as when
// text is generated. 2 R F C FLOPs; the weights of all experts that have rows are read, 4 E F C bytes at most.
#include <algorithm>

#include "linear/linear.h"
#include "moe.h"

namespace minigpt {

void grouped_linear_forward(const float* x, const float* weight, const int64_t* offsets, int64_t E, int64_t F,
                            int64_t C, float* y) {
  for (int64_t e = 0; e < E; e++) {
    int64_t start = offsets[e], rows = offsets[e + 1] - start;
    if (!rows) continue;
    linear_forward(product_blocked, x + start * C, weight + e * F * C, nullptr, rows, F, C, y + start * F, nullptr);
  }
}

// dx = dy weight[e] and dweight[e] = dy^T x, over the rows of expert e.
void grouped_linear_backward(const float* dy, const float* x, const float* weight, const int64_t* offsets, int64_t E,
                             int64_t F, int64_t C, bool accumulate, float* dx, float* dweight) {
  for (int64_t e = 0; e < E; e++) {
    int64_t start = offsets[e], rows = offsets[e + 1] - start;
    float* dweight_e = dweight + e * F * C;
    if (rows) {
      linear_backward(product_blocked, dy + start * F, x + start * C, weight + e * F * C, rows, F, C, accumulate,
                      dx + start * C, dweight_e, nullptr);
    } else if (!accumulate) {
      std::fill_n(dweight_e, F * C, 0.0f);
    }
  }
}

}  // namespace minigpt
