// The register tile, and the packing that feeds it: what the fastest rungs of the forward and the backward pass share.
//
// All their products have one form, C += A B, with A read one number at a time and B in vectors along its rows. A tile
// of C stays in registers while k runs, so that every vector of B loaded serves TILE_ROWS multiply-adds, and every
// number of A TILE_VECTORS of them: 24 multiply-adds for 10 loads with 32 registers, 12 for 8 with 16.
//
// linear/tile.h has another tile: 8 x 3 vectors need fewer loads, but here B is often D = 64 wide, four vectors of 16.
#pragma once
#include <algorithm>

#include "simd.h"

namespace minigpt {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_VECTORS = 4;  // 32 registers: 24 for the tile of C, 4 for B, 1 for A
#else
constexpr int TILE_VECTORS = 2;  // 16 registers: 12 for the tile of C, 2 for B, 1 for A
#endif
constexpr int TILE_ROWS = 6, PANEL = TILE_VECTORS * LANES;

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

struct Left {  // A[r][k] = data[r * row + k * step]: with row and step exchanged, A is transposed
  const float* data;
  int64_t row, step;
};
struct Right {  // the row B[k] starts at data + k * row; its tile of columns from j on, at j * column more
  const float* data;
  int64_t row, column;
};

// One tile of VECTORS vectors. start(r, c) is what the sum for the vector at c, in row r, starts from.
template <int VECTORS, class Start>
inline void multiply_tile(Left a, const float* b, int64_t b_row, int64_t depth, float* c, int64_t c_row, Start start) {
  vec sum[TILE_ROWS][VECTORS];
#pragma GCC unroll 6
  for (int r = 0; r < TILE_ROWS; r++) {
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) sum[r][j] = start(r, c + r * c_row + j * LANES);
  }
  for (int64_t k = 0; k < depth; k++) {
    vec bk[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) bk[j] = load(b + k * b_row + j * LANES);
#pragma GCC unroll 6
    for (int r = 0; r < TILE_ROWS; r++) {
      const vec ark = broadcast(a.data[r * a.row + k * a.step]);
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; j++) sum[r][j] += ark * bk[j];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < TILE_ROWS; r++) {
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) store(c + r * c_row + j * LANES, sum[r][j]);
  }
}

// TILE_ROWS rows of C, n columns wide (rounded up to whole vectors), with A B summed over `depth`.
template <class Start>
inline void multiply(Left a, Right b, int64_t depth, float* c, int64_t c_row, int64_t n, Start start) {
  for (int64_t j = 0; j < n; j += PANEL) {
    const float* bj = b.data + j * b.column;
    const int64_t vectors = (n - j + LANES - 1) / LANES;
    if (vectors >= TILE_VECTORS) {
      multiply_tile<TILE_VECTORS>(a, bj, b.row, depth, c + j, c_row, start);
    } else if (vectors == 3) {
      multiply_tile<3>(a, bj, b.row, depth, c + j, c_row, start);
    } else if (vectors == 2) {
      multiply_tile<2>(a, bj, b.row, depth, c + j, c_row, start);
    } else {
      multiply_tile<1>(a, bj, b.row, depth, c + j, c_row, start);
    }
  }
}

// Rows of a projection lie thousands of bytes apart, too far for the hardware to see what comes next.
inline void prefetch(const float* row, int64_t D) {
  for (int64_t d = 0; d < D; d += 16) __builtin_prefetch(row + d);
}

// Packs rows of D floats side by side, each times `scale`: `width` floats a row (whole vectors) and `padded` rows, with
// zeros beyond D and beyond `rows`.
inline void pack_rows(const float* x, int64_t x_row, int64_t rows, int64_t padded, int64_t D, float scale,
                      float* packed, int64_t width) {
  for (int64_t t = 0; t < rows; t++, x += x_row, packed += width) {
    if (t + 8 < rows) prefetch(x + 8 * x_row, D);
    each_vector(D, [&](int64_t d, auto at) { store(packed + d, scale * at.load(x + d)); });
  }
  std::fill_n(packed, (padded - rows) * width, 0.0f);
}

// And back, without the padding.
inline void unpack_rows(const float* packed, int64_t width, int64_t rows, int64_t D, float scale, float* x,
                        int64_t x_row) {
  for (int64_t t = 0; t < rows; t++, x += x_row, packed += width) {
    each_vector(D, [&](int64_t d, auto at) { at.store(x + d, scale * load(packed + d)); });
  }
}

// Packs rows of D floats transposed, in panels: the panel of rows j .. j + PANEL-1 starts at j * D and holds, for each
// d, its PANEL numbers side by side. `padded` (whole panels) counts the rows and those of zeros that fill the last one.
inline void pack_panels(const float* x, int64_t x_row, int64_t rows, int64_t padded, int64_t D, float* panels) {
  for (int64_t j = 0; j < padded; j += LANES) {
    float* panel = panels + j / PANEL * PANEL * D + j % PANEL;
    for (int64_t i = j + LANES; i < std::min(rows, j + 2 * LANES); i++) prefetch(x + i * x_row, D);
    each_vector(D, [&](int64_t d, auto at) {
      vec block[LANES];
      for (int i = 0; i < LANES; i++) block[i] = j + i < rows ? at.load(x + (j + i) * x_row + d) : vec{};
      transpose(block);
      for (int64_t i = 0; i < std::min<int64_t>(D - d, LANES); i++) store(panel + (d + i) * PANEL, block[i]);
    });
  }
}

}  // namespace minigpt
