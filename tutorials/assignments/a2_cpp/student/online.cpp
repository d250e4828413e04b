// Tasks 3.1 and 4.1: the algorithm behind FlashAttention (Dao et al. 2022, arXiv:2205.14135). Keys and values come tile
// by tile, and no query ever holds all of its scores.
#include "../given/functions.h"

// A tile of queries q (rows, D) takes in a tile of keys and values k, v (keys, D), and updates what it knows of all that
// came before: m (rows), the largest score so far (-inf at first), l (rows), the sum of exp(score - m), and o (rows, D),
// the sum of exp(score - m) v. When a tile raises m, l and o are too large by the factor exp(m_new - m_old).
//
// Query r sees the keys j <= r + diagonal of this tile. diagonal may be negative, and rows may see none of the keys: what
// they know then stays as it is. scale = 1 / sqrt(D).
// HINT: -inf - -inf is NaN.
void attention_absorb(const float* q, const float* k, const float* v, int64_t rows, int64_t keys, int64_t D,
                      int64_t diagonal, float* m, float* l, float* o) {
  // BEGIN SOLUTION 3.1
  float scale = 1 / std::sqrt(float(D));
  std::vector<float> p(keys);
  for (int64_t r = 0; r < rows; r++) {
    int64_t seen = std::min(keys, r + diagonal + 1);
    if (seen <= 0) continue;
    float m_new = m[r];
    for (int64_t j = 0; j < seen; j++) {
      float dot = 0;
      for (int64_t d = 0; d < D; d++) dot += q[r * D + d] * k[j * D + d];
      p[j] = scale * dot;
      m_new = std::max(m_new, p[j]);
    }
    float correction = std::exp(m[r] - m_new);
    l[r] *= correction;
    for (int64_t d = 0; d < D; d++) o[r * D + d] *= correction;
    for (int64_t j = 0; j < seen; j++) {
      p[j] = std::exp(p[j] - m_new);
      l[r] += p[j];
      for (int64_t d = 0; d < D; d++) o[r * D + d] += p[j] * v[j * D + d];
    }
    m[r] = m_new;
  }
  // END SOLUTION
}

// The same results as attention_forward of task 2.1, with the same arguments, made of attention_absorb. It may keep
// what a tile of queries knows and needs, 64 kB or so, but no array that grows with Tq or Tk. Tiles of keys that no query
// of the tile sees are skipped.
void attention_forward_tiled(const float* q, const float* k, const float* v, int64_t heads, int64_t Tq, int64_t Tk,
                             int64_t D, int64_t causal, float* out, float* lse) {
  // BEGIN SOLUTION 4.1
  const int64_t TILE = 64;
  float m[TILE], l[TILE];
  std::vector<float> o(TILE * D);
  for (int64_t h = 0; h < heads; h++, q += Tq * D, k += Tk * D, v += Tk * D, out += Tq * D, lse += Tq) {
    for (int64_t i = 0; i < Tq; i += TILE) {
      int64_t rows = std::min(TILE, Tq - i);
      int64_t last = causal ? i + rows + Tk - Tq : Tk;  // keys before this one are seen
      std::fill_n(m, rows, -std::numeric_limits<float>::infinity());
      std::fill_n(l, rows, 0.0f);
      std::fill(o.begin(), o.end(), 0.0f);
      for (int64_t j = 0; j < last; j += TILE) {
        int64_t keys = std::min(TILE, last - j), diagonal = causal ? i + Tk - Tq - j : keys;
        attention_absorb(q + i * D, k + j * D, v + j * D, rows, keys, D, diagonal, m, l, o.data());
      }
      for (int64_t r = 0; r < rows; r++) {
        for (int64_t d = 0; d < D; d++) out[(i + r) * D + d] = o[r * D + d] / l[r];
        lse[i + r] = m[r] + std::log(l[r]);
      }
    }
  }
  // END SOLUTION
}
