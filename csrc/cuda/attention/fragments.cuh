// The softmax on what the tensor cores leave in the registers of a warp: what the rungs that use them share.
//
// A warp has 16 queries. mma_m16n8k16 (ptx.cuh) spreads a 16 x 8 piece of C = A B over the 32 lanes like this; lane
// 4 g + t has columns 2t and 2t+1 of the rows g and g+8, as c[0], c[1] and c[2], c[3]:
//
//             column  0   1   2   3   4   5   6   7
//     row  0        | 0   0 | 1   1 | 2   2 | 3   3 |      the numbers are lanes, and the four of a row are a quad:
//          1        | 4   4 | 5   5 | 6   6 | 7   7 |      a maximum or sum over a row takes two shuffles
//          ...
//          7        |28  28 |29  29 |30  30 |31  31 |
//          8        | 0   0 | 1   1 | 2   2 | 3   3 |
//          ...
//
// S = Q K^T comes out in such pieces of 8 keys, s[n] for the keys 8n .. 8n+7. As the left factor of P V, A is 16 x 16,
// and lane 4 g + t must hold the columns 2t, 2t+1 and 2t+8, 2t+9 of its two rows: exactly what it has of two
// neighbouring pieces. So P goes from one product to the next without leaving the lane that computed it:
//
//                 s[2n], keys 16n .. 16n+7      s[2n+1], keys 16n+8 .. 16n+15
//     row g         c[0], c[1]  ->  a[0]          c[0], c[1]  ->  a[2]
//     row g+8       c[2], c[3]  ->  a[1]          c[2], c[3]  ->  a[3]
#pragma once
#include "forward.cuh"

// Over the four lanes of a quad.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// The rows g and g+8 of a lane, while the keys go by.
struct Running {
  float m[2] = {-INFINITY, -INFINITY};  // the largest score so far, without the scale
  float l[2] = {0, 0};                  // the sum of the probabilities of this lane's columns
};

// The exponentials are powers of two: exp(scale (s - m)) = 2^(scale2 s - scale2 m) with scale2 = log2(e) scale is one
// multiply-add and one instruction. The largest s belongs to the largest scale2 s only if the scale is positive; if it
// is not, all scores are multiplied by scale2 first, and then by 1.
__host__ __device__ inline float positive_scale2(float scale) { return scale > 0 ? LOG2E * scale : 1; }
template <int N>
__device__ void make_scale_positive(float (&s)[N][4], float scale) {
  if (scale > 0) return;
#pragma unroll
  for (int n = 0; n < N; n++) {
    for (float& x : s[n]) x *= LOG2E * scale;
  }
}

// Row g sees the first visible[0] keys of this tile, row g+8 the first visible[1]: the others become -inf.
template <int N>
__device__ void hide(float (&s)[N][4], const int (&visible)[2]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < N; n++) {
#pragma unroll
    for (int c = 0; c < 4; c++) s[n][c] = 8 * n + 2 * t + c % 2 < visible[c / 2] ? s[n][c] : -INFINITY;
  }
}

// S becomes P = 2^(scale2 (S - m)) for the new maxima m, and what was added up under the old ones is scaled down.
template <int N, int N_OUT>
__device__ void online_softmax(float (&s)[N][4], Running& now, float (&o)[N_OUT][4], float scale2) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float m = now.m[r];
#pragma unroll
    for (int n = 0; n < N; n++) m = fmaxf(m, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    m = quad_max(m);
    const float shift = m == -INFINITY ? 0 : scale2 * m;  // a row that has seen nothing: 2^(-inf - 0) = 0
    const float correction = exp2_approx(scale2 * now.m[r] - shift);
    now.m[r] = m;
    now.l[r] *= correction;
#pragma unroll
    for (int n = 0; n < N_OUT; n++) {
      o[n][2 * r] *= correction;
      o[n][2 * r + 1] *= correction;
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
      for (int c = 2 * r; c < 2 * r + 2; c++) {
        s[n][c] = exp2_approx(fmaf(scale2, s[n][c], -shift));
        now.l[r] += s[n][c];
      }
    }
  }
}

// The 16 x 16 piece of P for the keys 16n .. 16n+15, as the left factor of a product.
template <class T, int N>
__device__ void left_factor(uint32_t (&a)[4], const float (&p)[N][4], int n) {
  a[0] = pack<T>(p[2 * n][0], p[2 * n][1]);
  a[1] = pack<T>(p[2 * n][2], p[2 * n][3]);
  a[2] = pack<T>(p[2 * n + 1][0], p[2 * n + 1][1]);
  a[3] = pack<T>(p[2 * n + 1][2], p[2 * n + 1][3]);
}

// out = O / l and lse, for the 16 queries from i0 on. `aligned`: rows of out start at even numbers.
template <class T, int N>
__device__ void store_rows(const AttentionForward<T>& to, int b, int h, int i0, const float (&o)[N][4],
                           const Running& now, float scale2, bool aligned) {
  const AttentionShape& shape = to.shape;
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, D = shape.D;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int i = i0 + g + 8 * r;
    const float l = quad_sum(now.l[r]), norm = l == 0 ? 0 : 1 / l;
    if (i >= shape.Tq) continue;
    T* out = to.out.row(b, h, i);
#pragma unroll
    for (int n = 0; n < N; n++) {
      const int d = 8 * n + 2 * t;
      const float low = norm * o[n][2 * r], high = norm * o[n][2 * r + 1];
      if (aligned && d + 1 < D) {
        *reinterpret_cast<uint32_t*>(out + d) = pack<T>(low, high);
      } else {
        if (d < D) out[d] = from_float<T>(low);
        if (d + 1 < D) out[d + 1] = from_float<T>(high);
      }
    }
    if (t == 0) to.lse[shape.query(b, h, i)] = LN2 * scale2 * now.m[r] + logf(l);
  }
}
