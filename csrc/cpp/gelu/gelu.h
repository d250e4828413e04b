// gelu, the tanh form, over n numbers (see activation.h). y may be x, dx may be dy.
#pragma once
#include <cstdint>

namespace minigpt {

void gelu_forward(const float* x, int64_t n, float* y);
void gelu_backward(const float* dy, const float* x, int64_t n, float* dx);

}  // namespace minigpt
