// dk and dv as the last two rungs compute them. A block owns 64 keys and walks over the tiles of OTHER queries that see
// them, in every head of the group; everything is transposed, a row is a key and a column a query:
//   S^T = K Q^T    P^T = 2^(S^T - lse)    dV += P^T dO    dP^T = V dO^T    dS^T = P^T * (dP^T - delta)    dK += dS^T Q
// Needs sm_80.
#pragma once
#include "backward_mma.cuh"

// Of shared memory: K and V, OWN rows each, then twice OTHER rows of q, of dout, and of terms. In numbers of T.
template <int D, int OTHER, class T>
constexpr int STAGE = 2 * OTHER * D + OTHER * sizeof(QueryTerms) / sizeof(T);
template <int D, int OTHER, class T>
constexpr int SHARED = 2 * OWN * D + 2 * STAGE<D, OTHER, T>;

// A block is one of tile * B Hkv + head. and_ds(dS^T as left factors, b * H + h, the first query) is called tile by tile.
template <int D, int OTHER, class T, class Body>
__device__ void gradients_of_keys(const AttentionGradients<T>& a, const QueryTerms* terms, bool aligned, T* k,
                                  Body and_ds) {
  T* const v = k + OWN * D;
  T* const stages = v + OWN * D;
  const AttentionShape& shape = a.shape;
  const int heads = shape.B * shape.Hkv, head = blockIdx.x % heads;
  const int64_t b = head / shape.Hkv, hkv = head % shape.Hkv, j0 = int64_t(blockIdx.x / heads) * OWN;
  const int unmasked = shape.first_query(j0 + OWN - 1);  // queries from here on see every key of the tile
  const int first = shape.first_query(j0) / OTHER, tiles_a_head = (shape.Tq + OTHER - 1) / OTHER - first;
  const int tiles = tiles_a_head * shape.group(), g = 16 * warp() + lane() / 4, t = lane() % 4;
  const int seen_from[2] = {int(shape.first_query(j0 + g)), int(shape.first_query(j0 + g + 8))};
  const float scale2 = LOG2E * shape.scale;

  auto load = [&](int n) {
    T* q = stages + n % 2 * STAGE<D, OTHER, T>;
    T* dout = q + OTHER * D;
    const int64_t h = hkv * shape.group() + n / tiles_a_head;
    const int i0 = (first + n % tiles_a_head) * OTHER;
    load_tile<OTHER, D>(q, a.q, b, h, i0, shape.Tq, shape.D, aligned);
    load_tile<OTHER, D>(dout, a.dout, b, h, i0, shape.Tq, shape.D, aligned);
    if (threadIdx.x < OTHER / 2) {  // two queries' terms are 16 bytes
      cp_async_16(dout + OTHER * D + 8 * threadIdx.x,
                  terms + (b * shape.H + h) * padded_queries(shape.Tq) + i0 + 2 * threadIdx.x, 16);
    }
  };
  load_tile<OWN, D>(k, a.k, b, hkv, j0, shape.Tk, shape.D, aligned);
  load_tile<OWN, D>(v, a.v, b, hkv, j0, shape.Tk, shape.D, aligned);
  load(0);
  cp_async_commit();

  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  for (int n = 0; n < tiles; n++) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is here, and everybody has done with the one before
    if (n + 1 < tiles) {
      load(n + 1);
      cp_async_commit();
    }
    const T* q = stages + n % 2 * STAGE<D, OTHER, T>;
    const T* dout = q + OTHER * D;
    const QueryTerms* of = reinterpret_cast<const QueryTerms*>(dout + OTHER * D);
    const int64_t h = hkv * shape.group() + n / tiles_a_head;
    const int i0 = (first + n % tiles_a_head) * OTHER;

    float s[OTHER / 8][4] = {}, dp[OTHER / 8][4] = {};
    uint32_t left[OTHER / 16][4];
    multiply_rows<D, OTHER>(s, k, 16 * warp(), q);  // S^T = K Q^T, without the scale
#pragma unroll
    for (int m = 0; m < OTHER / 8; m++) {
#pragma unroll
      for (int e = 0; e < 4; e++) s[m][e] = exp2_approx(scale2 * s[m][e] - of[8 * m + 2 * t + e % 2].lse2);
    }  // P^T = exp(S^T - lse)
    if (i0 < unmasked || i0 + OTHER > shape.Tq) {  // a query past the end is all 0, but 0 times infinity is NaN
#pragma unroll
      for (int m = 0; m < OTHER / 8; m++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int i = i0 + 8 * m + 2 * t + e % 2;
          if (i < seen_from[e / 2] || i >= shape.Tq) s[m][e] = 0;
        }
      }
    }
    to_a<T>(left, s);
    multiply<D, OTHER>(dv, left, dout);                 // dV += P^T dO
    multiply_rows<D, OTHER>(dp, v, 16 * warp(), dout);  // dP^T = V dO^T
#pragma unroll
    for (int m = 0; m < OTHER / 8; m++) {
#pragma unroll
      for (int e = 0; e < 4; e++) s[m][e] *= dp[m][e] - of[8 * m + 2 * t + e % 2].delta;  // dS = P * (dP - delta)
    }
    to_a<T>(left, s);
    multiply<D, OTHER>(dk, left, q);  // dK += dS^T Q
    and_ds(left, b * shape.H + h, i0);
  }
  store_rows<D>(dk, shape.scale, a.dk, b, hkv, j0 + 16 * warp(), shape.Tk, shape.D, aligned);
  store_rows<D>(dv, 1.0f, a.dv, b, hkv, j0 + 16 * warp(), shape.Tk, shape.D, aligned);
}
