// C = A B, in blocks that stay in the caches.
//
// New: A is packed in panels too, and the sum over k is cut in blocks of at most DEPTH. The innermost loop now reads
// two streams in order; a panel of A (TILE_ROWS x DEPTH, 12 KiB) stays in L1 while it meets the panels of B, and a
// block of those (BLOCK_COLUMNS x DEPTH) stays in L2 while it meets the panels of A. Threads take blocks of C. Short
// sums added up also round less than a long one. Each element of A and B is packed once for every SLAB rows or columns
// of C, at 8 bytes for 2 * SLAB FLOPs; C is read and written once for every DEPTH: the FMA units set the pace.
// measured: (none yet)
#include "panel.h"
#include "scratch.h"
#include "tile.h"

namespace minigpt {

constexpr int64_t DEPTH = 384, BLOCK_ROWS = 16 * TILE_ROWS, BLOCK_COLUMNS = 8 * TILE_COLUMNS;
constexpr int64_t SLAB_ROWS = 8 * BLOCK_ROWS, SLAB_COLUMNS = 8 * BLOCK_COLUMNS;

// One block of C at (i0, j0): the panels of A in turn, each with all panels of B.
static void block(const Product& p, int64_t i0, int64_t j0, int64_t rows, int64_t columns, int64_t depth,
                  const float* a, const float* b, bool first, bool last) {
  for (int64_t i = 0; i < rows; i += TILE_ROWS, a += panel_size<TILE_ROWS>(depth)) {
    const float* panel = b;
    for (int64_t j = 0; j < columns; j += TILE_COLUMNS, panel += panel_size<TILE_COLUMNS>(depth)) {
      Tile<TILE_ROWS> c{};
      multiply<TILE_ROWS>(depth, a, 1, TILE_ROWS, panel, c);
      finish<TILE_ROWS>(p, i0 + i, j0 + j, c, first, last);
    }
  }
}

// A slab of C: every block of the sum is packed by all threads, then multiplied by all threads.
static void slab(const Product& p, int64_t i0, int64_t j0, int64_t rows, int64_t columns) {
  static thread_local Scratch a_scratch, b_scratch;
  int64_t blocks = ceil_div(p.K, DEPTH), step = ceil_div(ceil_div(p.K, blocks), LANES) * LANES;
  float* a = a_scratch.get(ceil_div(rows, TILE_ROWS) * panel_size<TILE_ROWS>(step));
  float* b = b_scratch.get(ceil_div(columns, TILE_COLUMNS) * panel_size<TILE_COLUMNS>(step));
  for (int64_t k = 0; k < p.K; k += step) {
    int64_t depth = std::min(step, p.K - k), across = ceil_div(columns, BLOCK_COLUMNS);
    pack<TILE_ROWS>({p.a.at(i0, k), p.a.row, p.a.column}, rows, depth, a);
    pack<TILE_COLUMNS>({p.b.at(k, j0), p.b.column, p.b.row}, columns, depth, b);
    parallel_for(ceil_div(rows, BLOCK_ROWS) * across, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        int64_t i = t / across * BLOCK_ROWS, j = t % across * BLOCK_COLUMNS;
        block(p, i0 + i, j0 + j, std::min(BLOCK_ROWS, rows - i), std::min(BLOCK_COLUMNS, columns - j), depth,
              a + i / TILE_ROWS * panel_size<TILE_ROWS>(depth), b + j / TILE_COLUMNS * panel_size<TILE_COLUMNS>(depth),
              k == 0, k + depth == p.K);
      }
    });
  }
}

void product_blocked(const Product& p) {
  if (p.M <= FEW_ROWS && p.a.column == 1 && p.b.row == 1) return product_few_rows(p);
  for (int64_t j = 0; j < p.N; j += SLAB_COLUMNS) {
    for (int64_t i = 0; i < p.M; i += SLAB_ROWS) {
      slab(p, i, j, std::min(SLAB_ROWS, p.M - i), std::min(SLAB_COLUMNS, p.N - j));
    }
  }
}

}  // namespace minigpt
