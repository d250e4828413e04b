// adamw: one step of the optimiser over n parameters, in place; and the squared norm that gradients are clipped by.
#pragma once
#include <cstdint>

namespace minigpt {

struct AdamW {
  int64_t step;  // counts from 1
  double lr, beta1, beta2, eps, weight_decay, grad_scale;
};

void adamw(const AdamW&, const float* grad, int64_t n, float* param, float* m, float* v);

// The sum of the squares of x's n numbers, added up in float64.
double squared_norm(const float* x, int64_t n);

}  // namespace minigpt
