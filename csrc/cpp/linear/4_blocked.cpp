// C = A B, in blocks that stay in the caches.
//
// New: A is packed in panels too, so that the innermost loop reads two streams in order, and threads take blocks of C
// instead of whole columns. A panel of A (TILE_ROWS x DEPTH, 12 KiB with AVX-512) stays in L1 while it meets the panels
// of B, and a block of those (BLOCK_COLUMNS x DEPTH, 288 KiB) stays in L2 while it meets the panels of A.
// Each element of A and B is packed once for every SLAB columns or rows of C, 8 bytes for 2 SLAB FLOPs, and C is read
// and written once for every DEPTH: the FMA units set the pace.
// measured: (none yet)
#include "panel.h"
#include "scratch.h"
#include "tile.h"

namespace minigpt {

constexpr int64_t BLOCK_ROWS = 16 * TILE_ROWS, BLOCK_COLUMNS = 4 * TILE_COLUMNS;
constexpr int64_t SLAB_ROWS = 16 * BLOCK_ROWS, SLAB_COLUMNS = 16 * BLOCK_COLUMNS;

// A slab of C and a block of the sum over k, with the panels it needs, which all threads read.
struct Slab {
  int64_t i, j, k, rows, columns, depth;
  const float *a, *b;
};

// One block of the slab, at (i0, j0): each panel of A in turn, with all panels of B.
static void block(const Product& p, const Slab& s, int64_t i0, int64_t j0) {
  for (int64_t i = i0; i < std::min(s.rows, i0 + BLOCK_ROWS); i += TILE_ROWS) {
    const float* a = s.a + i / TILE_ROWS * panel_size<TILE_ROWS>(s.depth);
    for (int64_t j = j0; j < std::min(s.columns, j0 + BLOCK_COLUMNS); j += TILE_COLUMNS) {
      const float* b = s.b + j / TILE_COLUMNS * panel_size<TILE_COLUMNS>(s.depth);
      Tile<TILE_ROWS> c{};
      multiply<TILE_ROWS>(s.depth, a, 1, TILE_ROWS, b, c);
      finish<TILE_ROWS>(p, s.i + i, s.j + j, c, s.k == 0, s.k + s.depth == p.K);
    }
  }
}

void product_blocked(const Product& p) {
  if (p.M <= FEW_ROWS && p.a.column == 1 && p.b.row == 1) return product_few_rows(p);
  static thread_local Scratch a_scratch, b_scratch;
  int64_t step = block_depth(p.K), rows = std::min(p.M, SLAB_ROWS), columns = std::min(p.N, SLAB_COLUMNS);
  float* a = a_scratch.get(ceil_div(rows, TILE_ROWS) * panel_size<TILE_ROWS>(step));
  float* b = b_scratch.get(ceil_div(columns, TILE_COLUMNS) * panel_size<TILE_COLUMNS>(step));
  for (int64_t j = 0; j < p.N; j += columns) {
    for (int64_t i = 0; i < p.M; i += rows) {
      for (int64_t k = 0; k < p.K; k += step) {
        Slab s{i, j, k, std::min(rows, p.M - i), std::min(columns, p.N - j), std::min(step, p.K - k), a, b};
        pack<TILE_ROWS>({p.a.at(i, k), p.a.row, p.a.column}, s.rows, s.depth, a);
        pack<TILE_COLUMNS>({p.b.at(k, j), p.b.column, p.b.row}, s.columns, s.depth, b);
        int64_t across = ceil_div(s.columns, BLOCK_COLUMNS);
        parallel_for(ceil_div(s.rows, BLOCK_ROWS) * across, 1,
                     [&](int64_t t, int64_t) { block(p, s, t / across * BLOCK_ROWS, t % across * BLOCK_COLUMNS); });
      }
    }
  }
}

}  // namespace minigpt
