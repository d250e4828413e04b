// C = A B, with a row of TILE_COLUMNS outputs in registers.
//
// New: the sum over k is cut in blocks (DEPTH), and for each of them B is copied into panels of TILE_COLUMNS columns.
// For each element of A, a row of the panel comes as whole vectors, all in memory order: 4 bytes from the cache for 2
// FLOPs. But a row of outputs is only TILE_VECTORS sums side by side: each addition waits 4 cycles for the one before,
// and that sets the pace.
// measured: 104 GFLOP/s, 47% of peak, linear forward 1024 x 768 x 768
// measured: 88.5 GFLOP/s, 39% of peak, linear backward 1024 x 768 x 768
// measured: on AMD EPYC (family 25 model 17, avx512), 2 threads, 2026-11
#include "panel.h"

namespace minigpt {

void product_panels(const Product& p) {
  for_each_panel(p, [&](int64_t j, int64_t k, int64_t depth, const float* panel) {
    for (int64_t i = 0; i < p.M; i++) {
      Tile<1> c;
      multiply<1>(depth, p.a.at(i, k), p.a.row, p.a.column, panel, c);
      finish<1>(p, i, j, p.M, p.N, c, k == 0, k + depth == p.K);
    }
  });
}

}  // namespace minigpt
