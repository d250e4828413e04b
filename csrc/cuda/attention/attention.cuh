// Attention: out = softmax(scale q k^T) v, row by row, and its gradients. What every rung needs: the sizes, who sees
// whom, and where the rows are.
//
// q, out and their gradients are (B, H, Tq, D); k and v are (B, Hkv, Tk, D); lse is (B, H, Tq).
//
// Rungs differ in one thing: what an infinity or NaN in k or v does to queries that the mask keeps from it. Where a tile
// crosses the diagonal its hidden keys are multiplied by probabilities of 0, and 0 * infinity is NaN; a rung that leaves
// hidden keys out gives a number. NumPy multiplies by all zeros, and both ways are right.
#pragma once
#include <cmath>
#include <cstdint>

#include "../heads.cuh"

constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;  // exponentials are computed as powers of two

struct AttentionShape {
  int64_t B, H, Hkv, Tq, Tk, D;
  bool causal;
  float scale;

  __host__ __device__ int64_t group() const { return H / Hkv; }  // query head h reads key head h / group()

  // How many keys query i sees, always the first ones. The last query sees the last key: a few new queries over a long
  // cache of keys are the last rows of the square, and the first queries of a block longer than its keys see nothing.
  __host__ __device__ int64_t visible_keys(int64_t i) const {
    if (!causal) return Tk;
    int64_t keys = i + 1 + Tk - Tq;
    return keys < 0 ? 0 : keys > Tk ? Tk : keys;
  }
  // The first query that sees key j; Tq for a key beyond the last, which nobody sees.
  __host__ __device__ int64_t first_query(int64_t j) const {
    int64_t i = j - (Tk - Tq);
    return j >= Tk ? Tq : !causal || i < 0 ? 0 : i;
  }
  // Where lse (B, H, Tq) has its number for query i of head h.
  __host__ __device__ int64_t query(int64_t b, int64_t h, int64_t i) const { return (b * H + h) * Tq + i; }
};

// A query that saw no key (or only scores of -inf) has lse = -inf: the backward pass takes 0 for it, so that its
// probabilities come out as exp(-inf) = 0 and not as exp(-inf + inf), which is NaN.
__device__ inline float finite_lse(float lse) { return lse == -INFINITY ? 0.0f : lse; }
