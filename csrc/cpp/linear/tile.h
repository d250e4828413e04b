// The register tile: the part of C that a core computes at a time, and the loop in which it spends its time.
#pragma once
#include <algorithm>

#include "activation.h"
#include "linear.h"
#include "simd.h"

namespace minigpt {

// The tile of C that stays in registers, TILE_ROWS x TILE_COLUMNS: large enough that the additions of one step of k
// keep the FMA units busy until the first is done, small enough that with a row of B and an element of A it fits the
// registers (32 of them with AVX-512 and on arm64, else 16).
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_ROWS = 8, TILE_VECTORS = 3;
#elif defined(__AVX2__)
constexpr int TILE_ROWS = 4, TILE_VECTORS = 3;
#else
constexpr int TILE_ROWS = 4, TILE_VECTORS = 2;
#endif
constexpr int TILE_COLUMNS = TILE_VECTORS * LANES;

template <int ROWS>
using Tile = vec[ROWS][TILE_VECTORS];

// c (ROWS x TILE_COLUMNS) = a (ROWS x depth) * panel (depth x TILE_COLUMNS): for every k, the product of a column of a
// and a row of the panel. Of the panel's vectors only the first VECTORS are looked at, the rest of c becomes 0. The
// sums are a local array, which compilers keep in registers; c itself they might keep in memory.
template <int ROWS, int VECTORS = TILE_VECTORS>
inline void multiply(int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* panel,
                     Tile<ROWS>& c) {
  Tile<ROWS> sum{};
  for (int64_t k = 0; k < depth; k++, a += a_column, panel += TILE_COLUMNS) {
    vec b[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) b[v] = load(panel + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sum[r][v] += a[r * a_row] * b[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) c[r][v] = sum[r][v];
  }
}

// Writes the tile to C at (i, j), as far as it lies above row i_end and left of column j_end. `first` and `last` say
// which block of the sum over k it is: the first one adds the bias, the later ones add to what the blocks before left
// in C, the last one may apply gelu.
template <int ROWS>
inline void finish(const Product& p, int64_t i, int64_t j, int64_t i_end, int64_t j_end, const Tile<ROWS>& tile,
                   bool first, bool last) {
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) {
    if (i + r >= i_end) break;
#pragma GCC unroll 4
    for (int v = 0; v < TILE_VECTORS; v++) {
      int64_t column = j + v * LANES, n = std::min<int64_t>(j_end - column, LANES), at = (i + r) * p.N + column;
      if (n <= 0) break;
      vec y = tile[r][v];
      if (first && p.bias) y += load_up_to(p.bias + column, n);
      if (!first || p.accumulate) y += load_up_to(p.c + at, n);
      store_up_to(p.c + at, y, n);
      if (last && p.gelu) store_up_to(p.gelu + at, gelu(y), n);
    }
  }
}

}  // namespace minigpt
