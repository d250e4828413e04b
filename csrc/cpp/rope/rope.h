// rope: each pair of channels (i, i + D/2) of x (B, H, T, D) is turned by the angle whose cosine and sine stand in
// cos and sin (T, D/2). y may be x.
#pragma once
#include "heads.h"

namespace minigpt {

struct RopeShape {
  int64_t B, H, T, D;
  bool backwards;  // turn the other way, as gradients are: the gradient of a rotation is the rotation back
};

void rope(const RopeShape&, Heads<const float> x, const float* cos, const float* sin, Heads<float> y);

}  // namespace minigpt
