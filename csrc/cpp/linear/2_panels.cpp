// C = A B, with a row of TILE_COLUMNS outputs in registers.
//
// New: B is copied once into panels of TILE_COLUMNS columns. For each element of A, a row of the panel comes as whole
// vectors: LANES products at a time, several sums side by side, all in memory order, and A is read once for every
// panel. Every vector of B still serves one product only: 4 bytes from the cache for 2 FLOPs, and the loads set the
// pace.
// measured: (none yet)
#include "panel.h"
#include "scratch.h"
#include "tile.h"

namespace minigpt {

void product_panels(const Product& p) {
  static thread_local Scratch scratch;
  int64_t panels = ceil_div(p.N, TILE_COLUMNS), size = panel_size<TILE_COLUMNS>(p.K);
  float* b = scratch.get(panels * size);
  pack<TILE_COLUMNS>(p.b.transposed(), p.N, p.K, b);
  parallel_for(panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; panel++) {
      for (int64_t i = 0; i < p.M; i++) {
        Tile<1> c{};
        multiply<1>(p.K, p.a.at(i, 0), p.a.row, p.a.column, b + panel * size, c);
        finish<1>(p, i, panel * TILE_COLUMNS, c, true, true);
      }
    }
  });
}

}  // namespace minigpt
