// C = A B, in blocks that stay in the caches.
//
// New: A is packed in panels too, so that the innermost loop reads two streams in order, and threads take blocks of C
// instead of whole columns. A panel of A (TILE_ROWS x DEPTH, 12 KiB with AVX-512) stays in L1 while it meets the panels
// of B, and a block of those (BLOCK_COLUMNS x DEPTH, 576 KiB) stays in L2 while it meets the panels of A.
// Each element of A and B is packed once for every SLAB columns or rows of C, 8 bytes for 2 SLAB FLOPs, and C is read
// and written once for every DEPTH: the FMA units set the pace.
// measured: (none yet)
#include "panel.h"
#include "scratch.h"

namespace minigpt {

constexpr int64_t BLOCK_TILES = 64, BLOCK_COLUMNS = 8 * TILE_COLUMNS;
constexpr int64_t SLAB_ROWS = 256 * TILE_ROWS, SLAB_COLUMNS = 64 * TILE_COLUMNS;

// A slab of C and a block of the sum over k, with the panels it needs, which all threads read.
struct Slab {
  int64_t i, j, k, rows, columns, depth;
  float *a, *b;
};

static void pack_slab(const Product& p, const Slab& s) {
  constexpr int64_t AT_ONCE = 8;  // panels of A, which are narrow
  int64_t a_panels = ceil_div(s.rows, TILE_ROWS), a_tasks = ceil_div(a_panels, AT_ONCE);
  Matrix rows{p.a.at(s.i, s.k), p.a.row, p.a.column}, columns{p.b.at(s.k, s.j), p.b.column, p.b.row};
  parallel_for(a_tasks + ceil_div(s.columns, TILE_COLUMNS), 1, [&](int64_t t, int64_t) {
    if (t < a_tasks) {
      pack<TILE_ROWS>(rows, s.rows, s.depth, s.a, t * AT_ONCE, std::min((t + 1) * AT_ONCE, a_panels));
    } else {
      pack<TILE_COLUMNS>(columns, s.columns, s.depth, s.b, t - a_tasks, t - a_tasks + 1);
    }
  });
}

// The block of the slab with rows i0 .. i1-1 and the columns from j0 on: each panel of A in turn, with all panels of B.
static void multiply_block(const Product& p, const Slab& s, int64_t i0, int64_t i1, int64_t j0) {
  for (int64_t i = i0; i < std::min(i1, s.rows); i += TILE_ROWS) {
    const float* a = s.a + i / TILE_ROWS * panel_size<TILE_ROWS>(s.depth);
    for (int64_t j = j0; j < std::min(j0 + BLOCK_COLUMNS, s.columns); j += TILE_COLUMNS) {
      const float* b = s.b + j / TILE_COLUMNS * panel_size<TILE_COLUMNS>(s.depth);
      Tile<TILE_ROWS> c{};
      int64_t vectors = ceil_div(s.columns - j, LANES);  // the last panel may have fewer than others
      if (vectors >= TILE_VECTORS) {
        multiply<TILE_ROWS>(s.depth, a, 1, TILE_ROWS, b, c);
      } else if (vectors == 1) {
        multiply<TILE_ROWS, 1>(s.depth, a, 1, TILE_ROWS, b, c);
      } else {
        multiply<TILE_ROWS, 2>(s.depth, a, 1, TILE_ROWS, b, c);
      }
      finish<TILE_ROWS>(p, s.i + i, s.j + j, c, s.k == 0, s.k + s.depth == p.K);
    }
  }
}

// Blocks are BLOCK_TILES high, but low enough to make several for every thread, so that none waits long for the last.
// A tile is the same whatever block it is in. They are numbered down the columns: a thread's next block mostly has the
// same columns, whose panels are in its L2.
static void multiply_slab(const Product& p, const Slab& s) {
  int64_t tiles = ceil_div(s.rows, TILE_ROWS), across = ceil_div(s.columns, BLOCK_COLUMNS);
  int64_t height = std::clamp(tiles * across / (8 * num_threads()), int64_t{1}, BLOCK_TILES) * TILE_ROWS;
  int64_t down = ceil_div(s.rows, height);
  parallel_for(down * across, 1, [&](int64_t t, int64_t) {
    multiply_block(p, s, t % down * height, (t % down + 1) * height, t / down * BLOCK_COLUMNS);
  });
}

void product_blocked(const Product& p) {
  if (p.M <= FEW_ROWS && p.a.column == 1 && p.b.row == 1) return product_few_rows(p);
  static thread_local Scratch a_scratch, b_scratch;
  int64_t rows = std::min(p.M, SLAB_ROWS), columns = std::min(p.N, SLAB_COLUMNS), depth = block_depth(p.K);
  float* a = a_scratch.get(ceil_div(rows, TILE_ROWS) * panel_size<TILE_ROWS>(depth));
  float* b = b_scratch.get(ceil_div(columns, TILE_COLUMNS) * panel_size<TILE_COLUMNS>(depth));
  for (int64_t j = 0; j < p.N; j += columns) {
    for (int64_t i = 0; i < p.M; i += rows) {
      for (int64_t k = 0; k < p.K; k += depth) {
        Slab s{i, j, k, std::min(rows, p.M - i), std::min(columns, p.N - j), std::min(depth, p.K - k), a, b};
        pack_slab(p, s);
        multiply_slab(p, s);
      }
    }
  }
}

}  // namespace minigpt
