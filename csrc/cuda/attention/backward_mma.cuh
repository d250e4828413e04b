// What the tensor-core rungs of the backward pass share: tiles in shared memory, their way there, and the two kinds of
// product. A block is four warps; it owns 64 rows, 16 a warp, and walks over tiles of OTHER others.
// Tiles are swizzled, see swizzle.cuh. Needs sm_80.
#pragma once
#include "backward.cuh"
#include "swizzle.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS, OWN = 16 * WARPS;

__device__ inline int lane() { return threadIdx.x % 32; }
__device__ inline int warp() { return threadIdx.x / 32; }

// Whether rows can be read in chunks of 16 bytes and written in pairs.
template <class T>
bool in_chunks(const AttentionGradients<T>& a) {
  return rows_aligned(a.q, 8) && rows_aligned(a.k, 8) && rows_aligned(a.v, 8) && rows_aligned(a.dout, 8) &&
         rows_aligned(a.dq, 2) && rows_aligned(a.dk, 2) && rows_aligned(a.dv, 2);
}

// Starts the copy of ROWS rows of head (b, h) from t0 on, with zeros from row `end` and column `columns` on. A thread
// copies the same chunk of every STEP-th row; STEP is a multiple of 8, so its place is the same in all of them.
template <int ROWS, int D, class T>
__device__ void load_tile(T* tile, Heads<const T> x, int64_t b, int64_t h, int64_t t0, int64_t end, int columns,
                          bool aligned) {
  constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
  const int c = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS, left = columns - 8 * c;
  const int rows = end - t0 < ROWS ? end - t0 : ROWS, wide = left < 0 ? 0 : left < 8 ? left : 8;
  const T* from = x.row(b, h, t0 + first) + 8 * c;
  T* to = tile + swizzled<D>(first, 8 * c);
#pragma unroll
  for (int r = 0; r < ROWS; r += STEP, from += STEP * x.row_stride, to += STEP * D) {
    const int count = first + r < rows ? wide : 0;
    if (aligned) {
      cp_async_16(to, from, count * sizeof(T));
    } else {
      for (int i = 0; i < 8; i++) to[i] = i < count ? from[i] : T{};
    }
  }
}

// C += A B^T: the 16 rows of A from `row` on with all N rows of B, summed over the D columns of both. c[n] holds the
// columns 8 n to 8 n + 7.
template <int D, int N, class T>
__device__ void multiply_rows(float (&c)[N / 8][4], const T* a, int row, const T* b) {
#pragma unroll 1  // unrolled, it would need more registers than there are
  for (int d = 0; d < D; d += 16) {
    uint32_t ad[4], bd[4];
    ldmatrix_x4(ad, a + (along<D>(row) ^ d));
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      ldmatrix_x4(bd, b + (across<D>(n) ^ d));
      mma_pair<T>(c[n / 8], c[n / 8 + 1], ad, bd);
    }
  }
}

// C += A B: A is 16 x K, in registers; B are K rows of D numbers.
template <int D, int K, class T>
__device__ void multiply(float (&c)[D / 8][4], const uint32_t (&a)[K / 16][4], const T* b) {
#pragma unroll
  for (int k = 0; k < K; k += 16) {
#pragma unroll
    for (int d = 0; d < D; d += 16) {
      uint32_t bk[4];
      ldmatrix_x4_trans(bk, b + (along<D>(k) ^ d));
      mma_pair<T>(c[d / 8], c[d / 8 + 1], a[k / 16], bk);
    }
  }
}

// A result of mma as the A of the next one. Both give lane 4 g + t the columns 2t and 2t+1 of the rows g and g+8: two
// results side by side are, number by number, one A of 16 columns. Nothing moves; floats become 16-bit numbers.
//
//   results   c[2k]: c0 c1 | c2 c3     c[2k+1]: c0 c1 | c2 c3        (row g | row g+8)
//   A         a[k]:    a0  |   a1                 a2  |   a3
template <class T, int N>
__device__ void to_a(uint32_t (&a)[N / 2][4], const float (&c)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; n++) {
    a[n / 2][n % 2 * 2] = pack<T>(c[n][0], c[n][1]);
    a[n / 2][n % 2 * 2 + 1] = pack<T>(c[n][2], c[n][3]);
  }
}

// Writes the 16 rows of a warp, two numbers at a time where rows are `aligned`.
template <int D, class T>
__device__ void store_rows(const float (&c)[D / 8][4], float scale, Heads<T> to, int64_t b, int64_t h, int64_t t0,
                           int64_t end, int columns, bool aligned) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int64_t t = t0 + lane() / 4 + 8 * half;
    if (t >= end) break;
    T* row = to.row(b, h, t);
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      const int d = 8 * n + lane() % 4 * 2;
      const float low = scale * c[n][2 * half], high = scale * c[n][2 * half + 1];
      if (aligned && d + 1 < columns) {
        *reinterpret_cast<uint32_t*>(row + d) = pack<T>(low, high);
      } else {
        if (d < columns) row[d] = from_float<T>(low);
        if (d + 1 < columns) row[d + 1] = from_float<T>(high);
      }
    }
  }
}
