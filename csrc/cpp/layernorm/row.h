// What the rungs above naive, and residual_layernorm, do with one row. A row is read from memory once: its later passes
// find it in the L1 cache (768 floats are 3 KiB). `streamed` sends the large output past the caches.
#pragma once
#include <cmath>

#include "../row_sums.h"
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
    vec shift = bias ? at.load(bias + i) : vec{};
    at.stream(y + i, (at.load(x + i) - mean) * rstd * at.load(weight + i) + shift);
  };
  streamed ? each_vector_streamed(y, C, body) : each_vector(C, body);
}

// dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) (+ dh where there is one), and this row's share of
// dweight and dbias is added to them.
inline void backward_row(const float* dh, const float* dy, const float* x, const float* weight, float mean, float rstd,
                         int64_t C, bool streamed, float* dx, float* dweight, float* dbias) {
  vec sum_dxhat{}, sum_dxhat_xhat{};
  each_vector(C, [&](int64_t i, auto at) {
    vec xhat = (at.load(x + i) - mean) * rstd, dxhat = at.load(dy + i) * at.load(weight + i);  // dxhat = 0 beyond C
    sum_dxhat += dxhat;
    sum_dxhat_xhat += dxhat * xhat;
  });
  float mean_dxhat = sum(sum_dxhat) / C, mean_dxhat_xhat = sum(sum_dxhat_xhat) / C;
  auto body = [&](int64_t i, auto at) {
    vec xhat = (at.load(x + i) - mean) * rstd, d = at.load(dy + i);
    at.store(dweight + i, at.load(dweight + i) + d * xhat);
    at.store(dbias + i, at.load(dbias + i) + d);
    vec along = dh ? at.load(dh + i) : vec{};
    at.stream(dx + i, rstd * (d * at.load(weight + i) - mean_dxhat - xhat * mean_dxhat_xhat) + along);
  };
  streamed ? each_vector_streamed(dx, C, body) : each_vector(C, body);
}

// All rows, by several threads, each chunk of rows with sums of its own.
inline void backward_rows(const float* dh, const float* dy, const float* x, const float* weight, const float* mean,
                          const float* rstd, int64_t rows, int64_t C, bool accumulate, bool streamed, float* dx,
                          float* dweight, float* dbias) {
  auto chunk = [&](int64_t begin, int64_t end, float* sums) {
    for (int64_t r = begin; r < end; r++) {
      const int64_t at = r * C;
      backward_row(dh ? dh + at : nullptr, dy + at, x + at, weight, mean[r], rstd[r], C, streamed, dx + at, sums,
                   sums + C);
    }
    if (streamed) streaming_done();
  };
  sum_over_rows(rows, 2 * C, chunk, [&](int64_t i, float total) {
    float& gradient = i < C ? dweight[i] : dbias[i - C];
    gradient = accumulate ? gradient + total : total;
  });
}

}  // namespace minigpt
