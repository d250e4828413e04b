// The activation functions as vectors, for the kernels that compute them alone and for those that fuse them.
#pragma once
#include "simd.h"

namespace minigpt {

// gelu(x) = 0.5 x (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3). As 0.5 (1 + tanh u) = sigmoid(2u), it is
// x sigmoid(2u) = x / (1 + e^-2u): one exponential, and no cancellation where x is very negative.
constexpr float GELU_SCALE = 2 * 0.7978845608028654f, GELU_CUBIC = 0.044715f;

inline vec exp_minus_2u(vec x) { return exp(x * (-GELU_SCALE - GELU_SCALE * GELU_CUBIC * (x * x))); }

inline vec gelu(vec x) { return x / (1.0f + exp_minus_2u(x)); }

// d gelu / dx = s + x s (1 - s) d(2u)/dx, with s = sigmoid(2u). Far out s (1 - s) is 0, and must meet x before x^2
// does, which may be infinite.
inline vec gelu_gradient(vec x) {
  vec s = 1.0f / (1.0f + exp_minus_2u(x));
  vec slope = x * s * (1.0f - s);
  return s + GELU_SCALE * slope + 3 * GELU_SCALE * GELU_CUBIC * (slope * x * x);
}

// x sigmoid(x), the gate of swiglu.
inline vec silu(vec x) { return x * sigmoid(x); }

}  // namespace minigpt
