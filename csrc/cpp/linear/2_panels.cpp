// C = A B, with a row of TILE_COLUMNS outputs in registers.
//
// New: the sum over k is cut in blocks (DEPTH), and for each of them B is copied into panels of TILE_COLUMNS columns.
// For each element of A, a row of the panel comes as whole vectors, all in memory order: 4 bytes from the cache for 2
// FLOPs. But a row of outputs is only TILE_VECTORS sums side by side: each addition waits 4 cycles for the one before,
// and that sets the pace.
// measured: 101 GFLOP/s, 46% of peak, linear forward 1024 x 768 x 768
// measured: 92.6 GFLOP/s, 42% of peak, linear backward 1024 x 768 x 768
// measured: on AMD EPYC (family 25 model 17, avx512), 2 threads, 2026-11
#include "panel.h"
#include "parallel.h"
#include "scratch.h"

namespace minigpt {

void product_panels(const Product& p) {
  static thread_local Scratch scratch;
  int64_t step = block_depth(p.K);
  float* b = scratch.get(panels_size<TILE_COLUMNS>(p.N, step));
  for (int64_t k = 0; k < p.K; k += step) {
    int64_t depth = std::min(step, p.K - k);
    parallel_for(p.N, TILE_COLUMNS, [&](int64_t begin, int64_t end) {
      pack_b(p, begin, end - begin, k, depth, b + panels_size<TILE_COLUMNS>(begin, depth));
    });
    parallel_for(p.N, TILE_COLUMNS, [&](int64_t j, int64_t) {
      for (int64_t i = 0; i < p.M; i++) {
        Tile<1> c;
        multiply<1>(depth, p.a.at(i, k), p.a.row, p.a.column, b + panels_size<TILE_COLUMNS>(j, depth), c);
        finish<1>(p, i, j, p.M, p.N, c, k == 0, k + depth == p.K);
      }
    });
  }
}

}  // namespace minigpt
