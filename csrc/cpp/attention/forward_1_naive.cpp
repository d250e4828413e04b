// Attention by its definition: for each query, all its scores, their softmax, the weighted sum of the values.
// Three passes over one row of scores, which is the only row that ever exists. Every key and every value is read again
// for every query: 2 Tk D floats of traffic for 4 Tk D FLOPs a row, and each FLOP waits for the one before.
// measured: 13.9 GFLOP/s, 6% of peak, attention forward, causal (4, 12, 1024, 64)
// measured: on AMD EPYC (family 25 model 17, avx512), 2 threads, 2026-11
#include <cmath>
#include <limits>
#include <vector>

#include "attention/attention.h"
#include "parallel.h"

namespace minigpt {

void attention_forward_naive(const AttentionShape& shape, Heads<const float> q, Heads<const float> k,
                             Heads<const float> v, Heads<float> out, float* lse) {
  parallel_for(shape.B * shape.H, 1, [&](int64_t head, int64_t) {
    const int64_t b = head / shape.H, h = head % shape.H, hkv = h / shape.group(), D = shape.D;
    std::vector<float> p(shape.Tk);
    for (int64_t i = 0; i < shape.Tq; i++) {
      const int64_t keys = shape.visible_keys(i);
      const float* qi = q.row(b, h, i);
      float* oi = out.row(b, h, i);

      float m = std::numeric_limits<float>::lowest();  // s_j = scale q_i . k_j, and their maximum
      for (int64_t j = 0; j < keys; j++) {
        const float* kj = k.row(b, hkv, j);
        float s = 0;
        for (int64_t d = 0; d < D; d++) s += qi[d] * kj[d];
        p[j] = s * shape.scale;
        if (p[j] > m) m = p[j];
      }
      float l = 0;  // p_j = exp(s_j - m), and their sum
      for (int64_t j = 0; j < keys; j++) {
        p[j] = std::exp(p[j] - m);
        l += p[j];
      }
      for (int64_t d = 0; d < D; d++) oi[d] = 0;  // out_i = sum_j p_j v_j / l
      const float norm = l == 0 ? 0 : 1 / l;
      for (int64_t j = 0; j < keys; j++) {
        const float* vj = v.row(b, hkv, j);
        for (int64_t d = 0; d < D; d++) oi[d] += p[j] * norm * vj[d];
      }
      lse[head * shape.Tq + i] = m + std::log(l);
    }
  });
}

}  // namespace minigpt
