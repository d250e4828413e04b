// The online softmax over one tile of scores, in vectors: what the tiled rungs of the forward pass share.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "simd.h"

namespace minigpt {

constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;

// What one query keeps while it walks over the keys. The scores, and so m, come multiplied by log2(e): their
// exponential is a power of two.
struct Running {
  float m = std::numeric_limits<float>::lowest();  // the largest score so far; finite, so that -inf - m is no NaN
  vec l{};                                         // the sum of 2^(s - m), spread over the lanes until the end
  float lse(float sum_l) const { return m * LN2 + std::log(sum_l); }
};

// Turns scores into p = 2^(s - m), 0 from `visible` on; p has n numbers, in whole vectors. Returns what everything that
// was summed up under the old maximum must be multiplied by.
inline vec online_softmax(float* p, int64_t visible, int64_t n, Running& now) {
  const int64_t masked_from = std::max<int64_t>(visible, 0) / LANES * LANES;
  for (int64_t j = masked_from; j < n; j += LANES) {
    const vec hidden = broadcast(-std::numeric_limits<float>::infinity());
    store(p + j, lane_numbers() < static_cast<int32_t>(visible - j) ? load(p + j) : hidden);
  }
  vec largest = broadcast(now.m);
  for (int64_t j = 0; j < n; j += LANES) largest = max(load(p + j), largest);  // a NaN is passed over here,
  const float m = max(largest);
  vec l{};
  for (int64_t j = 0; j < n; j += LANES) {
    const vec pj = exp2(load(p + j) - m);  // and comes through here
    store(p + j, pj);
    l += pj;
  }
  const vec correction = exp2(broadcast(now.m - m));
  now.l = now.l * correction + l;
  now.m = m;
  return correction;
}

}  // namespace minigpt
