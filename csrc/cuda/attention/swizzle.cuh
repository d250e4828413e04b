// Tiles of 16-bit numbers in shared memory, laid out so that ldmatrix (ptx.cuh) finds eight rows in eight different
// groups of banks.
//
// A row has D numbers (64 or 128) in chunks of 8 (16 bytes, 4 banks). Were chunk c of every row at place c, the same
// chunk of eight rows, which is what ldmatrix reads at a time, would lie in the same 4 banks, because a row fills all
// 32 of them once or twice. So chunk c of row r lies at place c ^ (r % 8), where ^ is exclusive or:
//
//         place   0  1  2  3  4  5  6  7             chunk 0 of the rows 0 .. 7 is at places 0 1 2 3 4 5 6 7,
//     row 0 chunk 0  1  2  3  4  5  6  7             chunk 1 at                            1 0 3 2 5 4 7 6:
//     row 1       1  0  3  2  5  4  7  6             any chunk of any eight neighbouring rows, each place once.
//     row 2       2  3  0  1  6  7  4  5             No byte is spent on padding, and writing and reading follow
//     row 3       3  2  1  0  7  6  5  4 ...         the same rule.
#pragma once
#include "attention.cuh"

// Where the number (row, d) is in a tile, for d a multiple of 8. The chunk is the upper part of d, so that all of the
// offset but the part from the row can be changed by an exclusive or: (row, d + e) is at offset ^ e if d is 0 there.
template <int D>
__device__ inline int swizzled(int row, int d) {
  return row * D + (d ^ 8 * (row % 8));
}

// Where this lane points ldmatrix_x4 for the 16 x 16 numbers from `row` (a multiple of 16) and column 0 on; ^ d for
// those from column d (a multiple of 16) on. The four 8 x 8 matrices come as
//
//     along   0 2     an A as mma wants it; or, with _trans, the B of two products: B[k][n] from rows k and columns n
//             1 3
//     across  0 1     the B of two products, from a tile that has the columns of B as rows: B[k][n] from rows n
//             2 3
template <int D>
__device__ inline int along(int row) {
  const int lane = threadIdx.x % 32;
  return swizzled<D>(row + lane % 16, lane / 16 * 8);
}
template <int D>
__device__ inline int across(int row) {
  const int lane = threadIdx.x % 32;
  return swizzled<D>(row + lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8);
}

// Two products with the same A, whose B came together.
template <class T>
__device__ inline void mma_pair(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  mma_m16n8k16<T>(c0, a, {b[0], b[1]});
  mma_m16n8k16<T>(c1, a, {b[2], b[3]});
}
