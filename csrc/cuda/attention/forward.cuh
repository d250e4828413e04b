// What the rungs of the forward pass share: the ladder, and what each kernel of it is given.
//
//   naive           the definition: one kernel for the scores, one for the softmax, one for the weighted values
//   online_softmax  a warp per row of stored scores: maximum and sum in one pass
//   fused_rows      one kernel, a warp per query; no score is stored
//   tiled           tiles in shared memory, a register tile per thread; float32 arithmetic
//   tensor_cores    both products as 16 x 8 x 16 matrix instructions; probabilities never leave the registers
//   swizzled        shared memory without bank conflicts
//   pipelined       the next tile is copied while this one is multiplied
//   hopper          what only sm_90 has: asynchronous matrix instructions, fed by a copy engine
#pragma once
#include "../numbers.cuh"
#include "../reduce.cuh"
#include "attention.cuh"

template <class T>
struct AttentionForward {
  Heads<const T> q, k, v;
  Heads<T> out;
  float* lse;  // float32 whatever T is
  AttentionShape shape;
};
template <class T>
AttentionForward<T> typed(const AttentionForward<void>& a) {
  return {typed<T>(a.q), typed<T>(a.k), typed<T>(a.v), typed<T>(a.out), a.lse, a.shape};
}
