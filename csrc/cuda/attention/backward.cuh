// What the rungs of the backward pass share: the ladder, their arguments in one struct and, from the second rung on, what
// a pair needs to know of its query.
//
//   rows            three kernels, a warp per row: delta, dq, and dk with dv; nothing is added up by two
//   tiled           the same two walks in tiles, from shared memory into register tiles; float32 arithmetic
//   tensor_cores    all products as matrix instructions; P and dS never leave the registers
//   fused           one walk for all three gradients, with atomic additions: what determinism costs
#pragma once
#include "../numbers.cuh"
#include "../reduce.cuh"
#include "attention.cuh"

template <class T>
struct AttentionGradients {
  AttentionShape shape;
  Heads<const T> dout, q, k, v, out;
  const float* lse;  // (B, H, Tq)
  Heads<T> dq, dk, dv;
};

template <class T>
AttentionGradients<T> typed(const AttentionGradients<void>& a) {
  return {a.shape, typed<T>(a.dout), typed<T>(a.q),  typed<T>(a.k), typed<T>(a.v), typed<T>(a.out),
          a.lse,   typed<T>(a.dq),   typed<T>(a.dk), typed<T>(a.dv)};
}

// P = exp(S - lse) = 2^(scale log2(e) q.k - lse2), and dS = P (dP - delta).
struct alignas(8) QueryTerms {
  float lse2;   // log2(e) lse; infinity for a query that sees no key, so that its probabilities come out as 0
  float delta;  // dout . out
};

// The terms are kept (B, H, padded): whole tiles of up to this many queries, those beyond the last see no key.
constexpr int QUERY_PADDING = 64;
__host__ __device__ inline int64_t padded_queries(int64_t Tq) {
  return (Tq + QUERY_PADDING - 1) / QUERY_PADDING * QUERY_PADDING;
}

// One warp a query of the padded ones, eight a block.
template <class T>
__global__ void query_terms(AttentionGradients<T> a, QueryTerms* terms) {
  const int64_t padded = padded_queries(a.shape.Tq), n = int64_t(blockIdx.x) * 8 + threadIdx.y;  // head * padded + i
  const int64_t i = n % padded, h = n / padded % a.shape.H, b = n / padded / a.shape.H;
  float delta = 0;
  if (i < a.shape.Tq) {
    const T *doi = a.dout.row(b, h, i), *oi = a.out.row(b, h, i);
    for (int d = threadIdx.x; d < a.shape.D; d += 32) delta += to_float(doi[d]) * to_float(oi[d]);
  }
  delta = warp_sum(delta);
  if (threadIdx.x == 0) {
    const float lse = i < a.shape.Tq ? a.lse[a.shape.query(b, h, i)] : -INFINITY;
    terms[n] = {lse == -INFINITY ? INFINITY : LOG2E * lse, delta};
  }
}

template <class T>
void compute_query_terms(const AttentionGradients<T>& a, QueryTerms* terms, cudaStream_t stream) {
  const int64_t queries = a.shape.B * a.shape.H * padded_queries(a.shape.Tq);
  query_terms<<<queries / 8, dim3(32, 8), 0, stream>>>(a, terms);
}
