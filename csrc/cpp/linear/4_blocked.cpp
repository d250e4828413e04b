// C = A B, in blocks that stay in the caches.
//
// New: A is packed in panels too, so that the innermost loop reads two streams in order. A panel of A (TILE_ROWS x
// DEPTH, 12 KiB with AVX-512) stays in L1 while it meets the panels of B, and a block of those (BLOCK_COLUMNS x DEPTH,
// 576 KiB) stays in L2 while it meets the panels of A. Every thread has a part of C for itself and packs what it needs:
// what two threads share would travel from core to core, and they would wait for each other at every step.
// Each element of A and B is packed once for every SLAB columns or rows of a part, 8 bytes for 2 SLAB FLOPs, and C is
// read and written once for every DEPTH: the FMA units set the pace. Where all of A and B fits in the caches anyway, as
// in the shape measured below, that gains little over the rung before; with the head of GPT-2 it gains most.
// measured: 208 GFLOP/s, 93% of peak, linear forward 1024 x 768 x 768
// measured: 196 GFLOP/s, 87% of peak, linear backward 1024 x 768 x 768
// measured: on AMD EPYC (family 25 model 17, avx512), 2 threads, 2026-11
#include "panel.h"
#include "parallel.h"
#include "scratch.h"

namespace minigpt {

constexpr int64_t BLOCK_COLUMNS = 8 * TILE_COLUMNS, SLAB_COLUMNS = 8 * BLOCK_COLUMNS, SLAB_ROWS = 256 * TILE_ROWS;
constexpr int64_t WORTH_A_THREAD = 1 << 17;  // multiply-adds, some microseconds of them

// A slab of C at (i, j) and a block of the sum at k, with the panels of A and B that it needs.
struct Slab {
  int64_t i, j, k, rows, columns, depth;
  float *a, *b;
};

// The tile of the slab at (i, j). In the last panel of B there may be fewer vectors to look at.
static void multiply_tile(const Product& p, const Slab& s, int64_t i, int64_t j) {
  const float *a = s.a + panels_size<TILE_ROWS>(i, s.depth), *b = s.b + panels_size<TILE_COLUMNS>(j, s.depth);
  int64_t vectors = ceil_div(s.columns - j, LANES);
  Tile<TILE_ROWS> c;
  if (vectors >= TILE_VECTORS) {
    multiply<TILE_ROWS>(s.depth, a, 1, TILE_ROWS, b, c);
  } else if (vectors == 1) {
    multiply<TILE_ROWS, 1>(s.depth, a, 1, TILE_ROWS, b, c);
  } else {
    multiply<TILE_ROWS, 2>(s.depth, a, 1, TILE_ROWS, b, c);
  }
  finish<TILE_ROWS>(p, s.i + i, s.j + j, s.i + s.rows, s.j + s.columns, c, s.k == 0, s.k + s.depth == p.K);
}

// A block of B's panels at a time; each panel of A in turn meets them all.
static void multiply_slab(const Product& p, const Slab& s) {
  for (int64_t block = 0; block < s.columns; block += BLOCK_COLUMNS) {
    for (int64_t i = 0; i < s.rows; i += TILE_ROWS) {
      for (int64_t j = block; j < std::min(block + BLOCK_COLUMNS, s.columns); j += TILE_COLUMNS) {
        multiply_tile(p, s, i, j);
      }
    }
  }
}

// The part of C with `rows` rows and `columns` columns at (i0, j0), by one thread.
static void multiply_part(const Product& p, int64_t i0, int64_t j0, int64_t rows, int64_t columns) {
  static thread_local Scratch a_scratch, b_scratch;
  int64_t slab_rows = std::min(rows, SLAB_ROWS), slab_columns = std::min(columns, SLAB_COLUMNS);
  int64_t depth = block_depth(p.K);
  float* a = a_scratch.get(panels_size<TILE_ROWS>(slab_rows, depth));
  float* b = b_scratch.get(panels_size<TILE_COLUMNS>(slab_columns, depth));
  for (int64_t j = 0; j < columns; j += slab_columns) {
    for (int64_t i = 0; i < rows; i += slab_rows) {
      for (int64_t k = 0; k < p.K; k += depth) {
        Slab s{i0 + i,
               j0 + j,
               k,
               std::min(slab_rows, rows - i),
               std::min(slab_columns, columns - j),
               std::min(depth, p.K - k),
               a,
               b};
        pack_a(p, s.i, s.rows, k, s.depth, a);
        pack_b(p, s.j, s.columns, k, s.depth, b);
        multiply_slab(p, s);
      }
    }
  }
}

void product_blocked(const Product& p) {
  if (p.M <= FEW_ROWS && p.a.column == 1 && p.b.row == 1) return product_few_rows(p);
  // A grid of parts, one a thread, with as little to pack as can be. An element of C is computed alike in any part.
  int64_t parts = std::clamp(p.M * p.N * p.K / WORTH_A_THREAD, int64_t{1}, int64_t{num_threads()});
  int64_t rows = 0, columns = 0;
  for (int64_t down = 1; down <= parts; down++) {
    if (parts % down) continue;
    int64_t r = ceil_div(ceil_div(p.M, TILE_ROWS), down) * TILE_ROWS;
    int64_t c = ceil_div(ceil_div(p.N, LANES), parts / down) * LANES;
    if (down == 1 || r + c < rows + columns) rows = r, columns = c;
  }
  int64_t down = ceil_div(p.M, rows), across = ceil_div(p.N, columns);
  parallel_for(down * across, 1, [&](int64_t t, int64_t) {
    int64_t i = t % down * rows, j = t / down * columns;
    multiply_part(p, i, j, std::min(rows, p.M - i), std::min(columns, p.N - j));
  });
}

}  // namespace minigpt
