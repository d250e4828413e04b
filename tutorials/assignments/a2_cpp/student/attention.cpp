// Tasks 2.1 and 2.2: attention (Vaswani et al. 2017, arXiv:1706.03762), one query after another.
//
// All arrays hold `heads` heads, one after another, that know nothing of each other: q, out (heads, Tq, D), k, v
// (heads, Tk, D), lse (heads, Tq). The *last* query stands at the *last* key: with causal = 1, query i sees the keys
// j <= i + Tk - Tq, with causal = 0 all of them. Tk >= Tq, so every query sees at least one key. scale = 1 / sqrt(D).
#include "../given/functions.h"

// BEGIN SOLUTION 2.1 NO PROMPT
namespace {
float dot(const float* a, const float* b, int64_t D) {
  float sum = 0;
  for (int64_t d = 0; d < D; d++) sum += a[d] * b[d];
  return sum;
}
}  // namespace

// END SOLUTION
// out = softmax(scale q k^T) v, and lse_i = log(sum_j exp(scale q_i k_j)), over the keys j that query i sees.
//
// HINT: exp(100) is infinite in float, but softmax does not change when all scores are less by the same m.
void attention_forward(const float* q, const float* k, const float* v, int64_t heads, int64_t Tq, int64_t Tk, int64_t D,
                       int64_t causal, float* out, float* lse) {
  // BEGIN SOLUTION 2.1
  float scale = 1 / std::sqrt(float(D));
  std::vector<float> p(Tk);  // the scores of one query, then their exponentials
  for (int64_t h = 0; h < heads; h++, q += Tq * D, k += Tk * D, v += Tk * D, out += Tq * D, lse += Tq) {
    for (int64_t i = 0; i < Tq; i++) {
      int64_t seen = causal ? i + Tk - Tq + 1 : Tk;  // the keys before this one
      for (int64_t j = 0; j < seen; j++) p[j] = scale * dot(q + i * D, k + j * D, D);
      float m = *std::max_element(p.begin(), p.begin() + seen), l = 0;
      for (int64_t j = 0; j < seen; j++) l += p[j] = std::exp(p[j] - m);

      std::fill_n(out + i * D, D, 0.0f);
      for (int64_t j = 0; j < seen; j++) {
        for (int64_t d = 0; d < D; d++) out[i * D + d] += p[j] / l * v[j * D + d];
      }
      lse[i] = m + std::log(l);
    }
  }
  // END SOLUTION
}

// dout, dq as q; dk, dv as k and v; out and lse as the forward pass returned them.
//
// The probabilities were not kept; lse gives them back: p_ij = exp(scale q_i k_j - lse_i). Then, with dp_ij = dout_i v_j
// and delta_i = dout_i out_i, the gradient of the scores is ds_ij = p_ij (dp_ij - delta_i).
void attention_backward(const float* dout, const float* q, const float* k, const float* v, const float* out,
                        const float* lse, int64_t heads, int64_t Tq, int64_t Tk, int64_t D, int64_t causal, float* dq,
                        float* dk, float* dv) {
  // BEGIN SOLUTION 2.2
  float scale = 1 / std::sqrt(float(D));
  std::fill_n(dq, heads * Tq * D, 0.0f);
  std::fill_n(dk, heads * Tk * D, 0.0f);
  std::fill_n(dv, heads * Tk * D, 0.0f);
  for (int64_t h = 0; h < heads; h++) {
    for (int64_t i = 0; i < Tq; i++) {
      int64_t query = (h * Tq + i) * D, seen = causal ? i + Tk - Tq + 1 : Tk;
      float delta = dot(dout + query, out + query, D);
      for (int64_t j = 0; j < seen; j++) {
        int64_t key = (h * Tk + j) * D;
        float p = std::exp(scale * dot(q + query, k + key, D) - lse[h * Tq + i]);
        float ds = p * (dot(dout + query, v + key, D) - delta);
        for (int64_t d = 0; d < D; d++) {
          dv[key + d] += p * dout[query + d];
          dq[query + d] += scale * ds * k[key + d];
          dk[key + d] += scale * ds * q[query + d];
        }
      }
    }
  }
  // END SOLUTION
}
