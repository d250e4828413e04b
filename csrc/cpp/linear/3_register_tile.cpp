// C = A B, with a tile of TILE_ROWS x TILE_COLUMNS outputs in registers.
//
// New: TILE_ROWS rows of A at a time. A row of the panel, once loaded, serves them all, so that a step of k loads
// TILE_VECTORS vectors and TILE_ROWS numbers for TILE_ROWS * TILE_VECTORS vector products: the FMA units set the pace,
// as long as the panel stays in the cache (4 K TILE_COLUMNS bytes: it does not when K is large).
// measured: (none yet)
#include "panel.h"
#include "scratch.h"
#include "tile.h"

namespace minigpt {

// Rows i .. i + ROWS - 1 of C, in the columns of one panel.
template <int ROWS>
static void rows(const Product& p, int64_t i, int64_t panel, const float* b) {
  Tile<ROWS> c{};
  multiply<ROWS>(p.K, p.a.at(i, 0), p.a.row, p.a.column, b, c);
  finish<ROWS>(p, i, panel * TILE_COLUMNS, c, true, true);
}

void product_register_tile(const Product& p) {
  static thread_local Scratch scratch;
  int64_t panels = ceil_div(p.N, TILE_COLUMNS), size = panel_size<TILE_COLUMNS>(p.K);
  float* b = scratch.get(panels * size);
  pack<TILE_COLUMNS>(p.b.transposed(), p.N, p.K, b);
  parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) {
      int64_t i = 0;
      for (; i + TILE_ROWS <= p.M; i += TILE_ROWS) rows<TILE_ROWS>(p, i, panel, b + panel * size);
      for (; i < p.M; i++) rows<1>(p, i, panel, b + panel * size);
    }
  });
}

}  // namespace minigpt
