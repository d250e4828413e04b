// What the tensor-core rungs of the backward pass share: tiles in shared memory, their way there, and the two kinds of
// product. A block is four warps; it owns 64 rows, 16 a warp, and walks over tiles of OTHER others.
//
// A tile is rows of D numbers of 16 bits, in chunks of 8 (16 bytes). Chunk c of row r lies at place c ^ (r % 8) of its
// row: the same chunk of eight neighbouring rows, which is what ldmatrix reads at a time, then lies in eight different
// groups of banks, where without the exclusive or all eight would be in one.
//
//               place 0   1   2   3   4   5   6   7
//        row 0  chunk 0   1   2   3   4   5   6   7
//        row 1        1   0   3   2   5   4   7   6
//        row 2        2   3   0   1   6   7   4   5          needs sm_80
#pragma once
#include "backward.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS, OWN = 16 * WARPS;

__device__ inline int lane() { return threadIdx.x % 32; }
__device__ inline int warp() { return threadIdx.x / 32; }

// Whether rows can be copied in chunks of 16 bytes.
template <class T>
bool in_chunks(Heads<const T> x) {
  return (reinterpret_cast<uintptr_t>(x.data) / sizeof(T) | x.batch_stride | x.head_stride | x.row_stride) % 8 == 0;
}

// Starts the copy of ROWS rows of head (b, h) from t0 on, with zeros from row `end` and column `columns` on. A thread
// copies the same chunk of every STEP-th row; STEP is a multiple of 8, so its place is the same in all of them.
template <int ROWS, int D, class T>
__device__ void load_tile(T* tile, Heads<const T> x, int64_t b, int64_t h, int64_t t0, int64_t end, int columns,
                          bool chunks) {
  constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
  const int c = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS, left = columns - 8 * c;
  const int rows = end - t0 < ROWS ? end - t0 : ROWS, wide = left < 0 ? 0 : left < 8 ? left : 8;
  const T* from = x.row(b, h, t0 + first) + 8 * c;
  T* to = tile + first * D + 8 * (c ^ first % 8);
#pragma unroll
  for (int r = 0; r < ROWS; r += STEP, from += STEP * x.row_stride, to += STEP * D) {
    const int count = first + r < rows ? wide : 0;
    if (chunks) {
      cp_async_16(to, from, count * sizeof(T));
    } else {
      for (int i = 0; i < 8; i++) to[i] = i < count ? from[i] : T{};
    }
  }
}

// The row and the place that this lane points ldmatrix at, for the 16 x 16 numbers from (row, 8 chunk) on, chunk even.
// `along`: lanes 0-15 the rows of the left half, 16-31 those of the right half: an A for mma as it lies in memory, or,
// transposed on the way, a pair of B for 16 rows of the sum and 2 x 8 columns of the result.
// `across`: lanes 0-7 and 8-15 the upper rows, left and right, then the lower ones: a pair of B whose columns are rows
// in memory, or an A whose columns are.
template <int D, class T>
__device__ const T* along(const T* tile, int row, int chunk) {
  return tile + (row + lane() % 16) * D + 8 * (chunk ^ lane() / 16 ^ lane() % 8);
}
template <int D, class T>
__device__ const T* across(const T* tile, int row, int chunk) {
  return tile + (row + lane() / 16 * 8 + lane() % 8) * D + 8 * (chunk ^ lane() / 8 % 2 ^ lane() % 8);
}

// Two products with one A, whose B came together.
template <class T>
__device__ void multiply_pair(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  mma_m16n8k16<T>(c0, a, {b[0], b[1]});
  mma_m16n8k16<T>(c1, a, {b[2], b[3]});
}

// C += A B^T: the 16 rows of A from `row` on with all N rows of B, summed over the D columns of both. c[n] holds the
// columns 8 n to 8 n + 7.
template <int D, int N, class T>
__device__ void multiply_rows(float (&c)[N / 8][4], const T* a, int row, const T* b) {
#pragma unroll 1  // unrolled, it would need more registers than there are
  for (int k = 0; k < D / 16; k++) {
    uint32_t ak[4], bk[4];
    ldmatrix_x4(ak, along<D>(a, row, 2 * k));
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      ldmatrix_x4(bk, across<D>(b, 16 * n, 2 * k));
      multiply_pair<T>(c[2 * n], c[2 * n + 1], ak, bk);
    }
  }
}

// C += A B: A is 16 x K, in registers; B are K rows of D numbers.
template <int D, int K, class T>
__device__ void multiply(float (&c)[D / 8][4], const uint32_t (&a)[K / 16][4], const T* b) {
#pragma unroll
  for (int k = 0; k < K / 16; k++) {
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
      uint32_t bk[4];
      ldmatrix_x4_trans(bk, along<D>(b, 16 * k, 2 * n));
      multiply_pair<T>(c[2 * n], c[2 * n + 1], a[k], bk);
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

// Writes the 16 rows of a warp.
template <int D, class T>
__device__ void store_rows(const float (&c)[D / 8][4], float scale, Heads<T> to, int64_t b, int64_t h, int64_t t0,
                           int64_t end, int columns) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int64_t t = t0 + lane() / 4 + 8 * half;
    if (t >= end) break;
    T* row = to.row(b, h, t);
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int d = 8 * n + lane() % 4 * 2 + i;
        if (d < columns) row[d] = from_float<T>(scale * c[n][2 * half + i]);
      }
    }
  }
}
