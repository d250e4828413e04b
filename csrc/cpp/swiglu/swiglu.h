// swiglu: y = gate * sigmoid(gate) * up, over n numbers. An output may be one of the inputs.
#pragma once
#include <cstdint>

namespace minigpt {

void swiglu_forward(const float* gate, const float* up, int64_t n, float* y);
void swiglu_backward(const float* dy, const float* gate, const float* up, int64_t n, float* dgate, float* dup);

}  // namespace minigpt
