// C = A B, with a tile of TILE_ROWS x TILE_COLUMNS outputs in registers.
//
// New: TILE_ROWS rows of A at a time. A row of the panel, once loaded, serves them all, so that a step of k loads
// TILE_VECTORS vectors and TILE_ROWS numbers for TILE_ROWS * TILE_VECTORS vector products: the FMA units set the pace,
// as long as the rest comes in time. A is still read with strides, one cache line for each of its rows.
// measured: 203 GFLOP/s, 90% of peak, linear forward 1024 x 768 x 768
// measured: 198 GFLOP/s, 88% of peak, linear backward 1024 x 768 x 768
// measured: on AMD EPYC (family 25 model 17, avx512), 2 threads, 2026-11
#include "panel.h"

namespace minigpt {

// Rows i .. i + ROWS - 1 of C, in the columns of one panel, and depth terms of the sum from k on.
template <int ROWS>
static void rows(const Product& p, int64_t i, int64_t j, int64_t k, int64_t depth, const float* panel) {
  Tile<ROWS> c;
  multiply<ROWS>(depth, p.a.at(i, k), p.a.row, p.a.column, panel, c);
  finish<ROWS>(p, i, j, p.M, p.N, c, k == 0, k + depth == p.K);
}

void product_register_tile(const Product& p) {
  for_each_panel(p, [&](int64_t j, int64_t k, int64_t depth, const float* panel) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= p.M; i += TILE_ROWS) rows<TILE_ROWS>(p, i, j, k, depth, panel);
    for (; i < p.M; i++) rows<1>(p, i, j, k, depth, panel);
  });
}

}  // namespace minigpt
