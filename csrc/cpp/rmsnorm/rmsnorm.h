// rmsnorm: y = x * rstd * weight, row by row, with rstd = 1 / sqrt(mean(x^2) + eps).
// x y dy dx (rows, C), weight dweight (C), rstd (rows).
#pragma once
#include <cstdint>

namespace minigpt {

void rmsnorm_forward(const float* x, const float* weight, int64_t rows, int64_t C, float eps, float* y, float* rstd);

// dweight is added to what is there where `accumulate`, else overwritten.
void rmsnorm_backward(const float* dy, const float* x, const float* weight, const float* rstd, int64_t rows, int64_t C,
                      bool accumulate, float* dx, float* dweight);

}  // namespace minigpt
