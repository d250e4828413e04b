// FlashAttention's order (Dao et al. 2022, arXiv:2205.14135): a tile of queries walks over tiles of keys. A tile of
// keys and values is read from memory once per tile of queries, not once per query, and then found in the L1 cache; the
// maximum is raised once per tile, not per key; and as scores now come in rows, everything is done in vectors: the dot
// products along D, the exponentials along the keys. It reads k and v where they lie, which suits a few queries over a
// long cache of keys best. 4 Tq Tk D FLOPs as before; 2 Tk D floats of traffic per QUERY_TILE rows instead of per row.
// measured: 85.3 GFLOP/s, 38% of peak, attention forward, causal (4, 12, 1024, 64)
// measured: on AMD EPYC (family 25 model 17, avx512), 2 threads, 2026-11
#include <algorithm>
#include <cmath>

#include "attention/attention.h"
#include "attention/softmax.h"
#include "parallel.h"
#include "simd.h"

namespace minigpt {

constexpr int64_t QUERY_TILE = 16, KEY_TILE = 64;

// o = correction * o + sum_j p_j v_j, four vectors of o at a time in registers.
static void add_values(const float* p, int64_t keys, const float* v, int64_t v_row, vec correction, float* o,
                       int64_t D) {
  int64_t d = 0;
  for (; d + 4 * LANES <= D; d += 4 * LANES) {
    vec sum[4];
    for (int i = 0; i < 4; i++) sum[i] = correction * load(o + d + i * LANES);
    for (int64_t j = 0; j < keys; j++) {
      for (int i = 0; i < 4; i++) sum[i] += p[j] * load(v + j * v_row + d + i * LANES);
    }
    for (int i = 0; i < 4; i++) store(o + d + i * LANES, sum[i]);
  }
  each_vector(D - d, [&](int64_t rest, auto at) {
    vec sum = correction * at.load(o + d + rest);
    for (int64_t j = 0; j < keys; j++) sum += p[j] * at.load(v + j * v_row + d + rest);
    at.store(o + d + rest, sum);
  });
}

void attention_forward_tiled(const AttentionShape& shape, Heads<const float> q, Heads<const float> k,
                             Heads<const float> v, Heads<float> out, float* lse) {
  const int64_t D = shape.D, tiles = (shape.Tq + QUERY_TILE - 1) / QUERY_TILE;
  parallel_for(shape.B * shape.H * tiles, 1, [&](int64_t unit, int64_t) {
    const int64_t head = unit / tiles, b = head / shape.H, h = head % shape.H, hkv = h / shape.group();
    const int64_t first = unit % tiles * QUERY_TILE, end = std::min(first + QUERY_TILE, shape.Tq);
    Running running[QUERY_TILE];
    for (int64_t i = first; i < end; i++) std::fill_n(out.row(b, h, i), D, 0.0f);

    for (int64_t j0 = 0; j0 < shape.visible_keys(end - 1); j0 += KEY_TILE) {
      const float *kt = k.row(b, hkv, j0), *vt = v.row(b, hkv, j0);
      for (int64_t i = first; i < end; i++) {
        const int64_t keys = std::min(shape.visible_keys(i) - j0, KEY_TILE);  // that query i sees in this tile
        if (keys <= 0) continue;
        const float* qi = q.row(b, h, i);
        float p[KEY_TILE];
        for (int64_t j = 0; j < keys; j++) {
          const float* kj = kt + j * k.row_stride;
          p[j] =
              shape.scale * LOG2E * sum_over(D, [&](int64_t d, auto at) { return at.load(qi + d) * at.load(kj + d); });
        }
        const vec correction = online_softmax(p, keys, (keys + LANES - 1) / LANES * LANES, running[i - first]);
        add_values(p, keys, vt, v.row_stride, correction, out.row(b, h, i), D);
      }
    }
    for (int64_t i = first; i < end; i++) {
      const float l = sum(running[i - first].l), norm = l == 0 ? 0 : 1 / l;
      float* oi = out.row(b, h, i);
      each_vector(D, [&](int64_t d, auto at) { at.store(oi + d, norm * at.load(oi + d)); });
      lse[head * shape.Tq + i] = running[i - first].lse(l);
    }
  });
}

}  // namespace minigpt
