// The gradients tile by tile, in vectors: a tile of keys walks over the queries. Its k, v, dk and dv (KEY_TILE rows
// each) stay in the L1 cache while every query passes once, with all five products done per visit: the rung before
// touched dk and dv of every key for every query. Dot products run along D, the exponentials along KEY_TILE scores.
// 10 D FLOPs a pair as before; q, dout and dq are read (and dq written) once per tile of keys.
// measured: 50.8 GFLOP/s, 23% of peak, attention backward, causal (4, 12, 512, 64)
// measured: on AMD EPYC (family 25 model 17, avx512), 2 threads, 2026-11
#include <algorithm>
#include <cmath>

#include "attention/attention.h"
#include "attention/softmax.h"
#include "parallel.h"
#include "simd.h"

namespace minigpt {

constexpr int64_t KEY_TILE = 32;

static float dot(const float* a, const float* b, int64_t n) {
  return sum_over(n, [&](int64_t i, auto at) { return at.load(a + i) * at.load(b + i); });
}

// y += a x
static void add(float* y, float a, const float* x, int64_t n) {
  each_vector(n, [&](int64_t i, auto at) { at.store(y + i, at.load(y + i) + a * at.load(x + i)); });
}

void attention_backward_tiled(const AttentionShape& shape, Heads<const float> dout, Heads<const float> q,
                              Heads<const float> k, Heads<const float> v, Heads<const float> out, const float* lse,
                              Heads<float> dq, Heads<float> dk, Heads<float> dv) {
  const int64_t D = shape.D;
  parallel_for(shape.B * shape.Hkv, 1, [&](int64_t key_head, int64_t) {
    const int64_t b = key_head / shape.Hkv, hkv = key_head % shape.Hkv;
    for (int64_t h = hkv * shape.group(); h < (hkv + 1) * shape.group(); h++) {
      for (int64_t i = 0; i < shape.Tq; i++) std::fill_n(dq.row(b, h, i), D, 0.0f);
    }
    for (int64_t j0 = 0; j0 < shape.Tk; j0 += KEY_TILE) {
      const int64_t tile = std::min(KEY_TILE, shape.Tk - j0);
      for (int64_t j = j0; j < j0 + tile; j++) {
        std::fill_n(dk.row(b, hkv, j), D, 0.0f);
        std::fill_n(dv.row(b, hkv, j), D, 0.0f);
      }
      for (int64_t h = hkv * shape.group(); h < (hkv + 1) * shape.group(); h++) {
        for (int64_t i = shape.first_query(j0); i < shape.Tq; i++) {
          const float *qi = q.row(b, h, i), *doi = dout.row(b, h, i);
          const int64_t keys = std::min(shape.visible_keys(i) - j0, tile);
          const float delta = dot(doi, out.row(b, h, i), D);
          const float lse_i = LOG2E * finite_lse(lse[(b * shape.H + h) * shape.Tq + i]);
          float p[KEY_TILE], ds[KEY_TILE];
          for (int64_t j = 0; j < keys; j++) {
            p[j] = shape.scale * LOG2E * dot(qi, k.row(b, hkv, j0 + j), D) - lse_i;
            ds[j] = dot(doi, v.row(b, hkv, j0 + j), D);
          }
          each_vector(keys, [&](int64_t j, auto at) {
            const vec pj = exp2(at.load(p + j));
            at.store(p + j, pj);
            at.store(ds + j, shape.scale * pj * (at.load(ds + j) - delta));
          });
          for (int64_t j = 0; j < keys; j++) {
            add(dv.row(b, hkv, j0 + j), p[j], doi, D);
            add(dk.row(b, hkv, j0 + j), ds[j], qi, D);
            add(dq.row(b, h, i), ds[j], k.row(b, hkv, j0 + j), D);
          }
        }
      }
    }
  });
}

}  // namespace minigpt
