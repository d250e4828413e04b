// residual_layernorm: h = x + residual, y = layernorm(h). All (rows, C) but weight bias dweight dbias (C) and mean rstd
// (rows). bias may be null.
#pragma once
#include <cstdint>

namespace minigpt {

void residual_layernorm_forward(const float* x, const float* residual, const float* weight, const float* bias,
                                int64_t rows, int64_t C, float eps, float* h, float* y, float* mean, float* rstd);

// dx = dh + (the gradient of layernorm); dh may be dx. dweight and dbias are added to what is there where `accumulate`.
void residual_layernorm_backward(const float* dh, const float* dy, const float* h, const float* weight,
                                 const float* mean, const float* rstd, int64_t rows, int64_t C, bool accumulate,
                                 float* dx, float* dweight, float* dbias);

}  // namespace minigpt
