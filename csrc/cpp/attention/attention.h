// Attention: out = softmax(scale q k^T) v, row by row, and its gradients.
//
// The ladder, forward:
//   naive           the definition: three passes over a row of scores
//   online_softmax  one pass, with a running maximum: no score is stored
//   tiled           tiles of queries over tiles of keys, found in the cache; vectors
//   register_tile   both products in register tiles, from packed keys and values
// and backward:
//   naive           the probabilities again from lse, pair by pair
//   tiled           tiles of keys that stay in the cache while the queries pass; vectors
//   register_tile   all five products in register tiles
//
// q, out and their gradients are (B, H, Tq, D); k and v are (B, Hkv, Tk, D); lse is (B, H, Tq).
#pragma once
#include <cstdint>
#include <limits>

#include "heads.h"
#include "ladder.h"

namespace minigpt {

struct AttentionShape {
  int64_t B, H, Hkv, Tq, Tk, D;
  bool causal;
  float scale;

  int64_t group() const { return H / Hkv; }  // query head h reads key head h / group()

  // How many keys query i sees, always the first ones. The last query sees the last key: a few new queries over a long
  // cache of keys are the last rows of the square, and the first queries of a block longer than its keys see nothing.
  int64_t visible_keys(int64_t i) const {
    if (!causal) return Tk;
    int64_t keys = i + 1 + Tk - Tq;
    return keys < 0 ? 0 : keys > Tk ? Tk : keys;
  }
  // The first query that sees key j.
  int64_t first_query(int64_t j) const {
    int64_t i = j - (Tk - Tq);
    return !causal || i < 0 ? 0 : i;
  }
};

// A query that saw no key (or only scores of -inf) has lse = -inf: the backward pass takes 0 for it, so that its
// probabilities come out as exp(-inf) = 0 and not as exp(-inf + inf), which is NaN.
inline float finite_lse(float lse) { return lse == -std::numeric_limits<float>::infinity() ? 0.0f : lse; }

using AttentionForward = void(const AttentionShape&, Heads<const float> q, Heads<const float> k, Heads<const float> v,
                              Heads<float> out, float* lse);
using AttentionBackward = void(const AttentionShape&, Heads<const float> dout, Heads<const float> q,
                               Heads<const float> k, Heads<const float> v, Heads<const float> out, const float* lse,
                               Heads<float> dq, Heads<float> dk, Heads<float> dv);

AttentionForward attention_forward_naive, attention_forward_online_softmax, attention_forward_tiled,
    attention_forward_register_tile;
AttentionBackward attention_backward_naive, attention_backward_tiled, attention_backward_register_tile;

inline constexpr Rung<AttentionForward> attention_forward_ladder[] = {
    {"naive", attention_forward_naive},
    {"online_softmax", attention_forward_online_softmax},
    {"tiled", attention_forward_tiled},
    {"register_tile", attention_forward_register_tile},
};
inline constexpr Rung<AttentionBackward> attention_backward_ladder[] = {
    {"naive", attention_backward_naive},
    {"tiled", attention_backward_tiled},
    {"register_tile", attention_backward_register_tile},
};

}  // namespace minigpt
