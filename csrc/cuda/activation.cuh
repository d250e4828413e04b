// The activation functions, for the kernels that compute them alone and for those that fuse them.
#pragma once
#include <cmath>

__device__ inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }  // e^-x = inf far left: 0

// gelu(x) = 0.5 x (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3). As 0.5 (1 + tanh u) = sigmoid(2u), it is
// x sigmoid(2u) = x / (1 + e^-2u): one exponential, and no cancellation where x is very negative.
constexpr float GELU_SCALE = 2 * 0.7978845608028654f, GELU_CUBIC = 0.044715f;

__device__ inline float exp_minus_2u(float x) { return expf(x * (-GELU_SCALE - GELU_SCALE * GELU_CUBIC * (x * x))); }

__device__ inline float gelu(float x) { return x / (1 + exp_minus_2u(x)); }

// d gelu / dx = s + x s (1 - s) d(2u)/dx, with s = sigmoid(2u). Far out s (1 - s) is 0, and must meet x before x^2
// does, which may be infinite.
__device__ inline float gelu_gradient(float x) {
  float s = 1 / (1 + exp_minus_2u(x));
  float slope = x * s * (1 - s);
  return s + GELU_SCALE * slope + 3 * GELU_SCALE * GELU_CUBIC * (slope * x * x);
}
