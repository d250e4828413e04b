// What the rungs above naive, and residual_layernorm, do with one row. A row is read from memory once: its later passes
// find it in the L1 cache (768 floats are 3 KiB).
#pragma once
#include <cmath>

#include "../simd.h"

namespace minigpt {

inline float row_mean(const float* x, int64_t C) {
  return sum_over(C, [&](int64_t i, auto at) { return at.load(x + i); }) / C;
}

inline float row_rstd(const float* x, float mean, int64_t C, float eps) {
  float squares = sum_over(C, [&](int64_t i, auto at) {
    vec centred = at.load(x + i) - mean;
    return centred * centred;
  });
  return 1 / std::sqrt(squares / C + eps);
}

inline void normalise_row(const float* x, const float* weight, const float* bias, float mean, float rstd, int64_t C,
                          bool streamed, float* y) {
  auto body = [&](int64_t i, auto at) {
    vec v = (at.load(x + i) - mean) * rstd * at.load(weight + i);
    at.store(y + i, bias ? v + at.load(bias + i) : v);
  };
  streamed ? each_vector_streamed(y, C, body) : each_vector(C, body);
}

// dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) (+ dh where there is one), and this row's share of
// dweight and dbias is added to them.
inline void backward_row(const float* dh, const float* dy, const float* x, const float* weight, float mean, float rstd,
                         int64_t C, float* dx, float* dweight, float* dbias) {
  vec sum_dxhat{}, sum_dxhat_xhat{};
  each_vector(C, [&](int64_t i, auto at) {
    vec xhat = (at.load(x + i) - mean) * rstd, dxhat = at.load(dy + i) * at.load(weight + i);  // dxhat = 0 beyond C
    sum_dxhat += dxhat;
    sum_dxhat_xhat += dxhat * xhat;
  });
  float mean_dxhat = sum(sum_dxhat) / C, mean_dxhat_xhat = sum(sum_dxhat_xhat) / C;
  each_vector(C, [&](int64_t i, auto at) {
    vec xhat = (at.load(x + i) - mean) * rstd, d = at.load(dy + i);
    at.store(dweight + i, at.load(dweight + i) + d * xhat);
    at.store(dbias + i, at.load(dbias + i) + d);
    vec result = rstd * (d * at.load(weight + i) - mean_dxhat - xhat * mean_dxhat_xhat);
    at.store(dx + i, dh ? result + at.load(dh + i) : result);
  });
}

}  // namespace minigpt
