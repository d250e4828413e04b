// Panels: a matrix laid out in the order in which the innermost loop reads it, whatever its strides were.
//
// A panel holds WIDTH lanes side by side, depth by depth: panel[k * WIDTH + lane]. The lanes are rows of A or columns
// of B, the depth is the index that the product sums over. Lanes beyond the edge of the matrix are 0.
#pragma once
#include <algorithm>

#include "linear.h"
#include "parallel.h"
#include "scratch.h"
#include "simd.h"
#include "tile.h"

namespace minigpt {

// The sum over k is cut in blocks of at most DEPTH: short sums added up round less than one long sum, and their panels
// are small enough for the caches.
constexpr int64_t DEPTH = 384;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// K cut in as few blocks as DEPTH allows, of equal size as far as whole vectors go.
inline int64_t block_depth(int64_t K) { return ceil_div(ceil_div(K, ceil_div(K, DEPTH)), LANES) * LANES; }

// The floats from one panel to the next: whole vectors along the depth, as transposing writes them.
template <int WIDTH>
int64_t panel_size(int64_t depth) {
  return ceil_div(depth, LANES) * LANES * WIDTH;
}

// The floats of all panels for that many lanes.
template <int WIDTH>
int64_t panels_size(int64_t lanes, int64_t depth) {
  return ceil_div(lanes, WIDTH) * panel_size<WIDTH>(depth);
}

// Fills the panels of m (lanes x depth), where the lanes lie side by side: a few panels at a time, so that whole cache
// lines are read.
template <int WIDTH>
void copy_panels(Matrix m, int64_t lanes, int64_t depth, float* panels) {
  constexpr int64_t STRETCH = 8 * WIDTH;
  for (int64_t first = 0; first < lanes; first += STRETCH) {
    for (int64_t k = 0; k < depth; k++) {
      for (int64_t lane = first; lane < std::min(first + STRETCH, lanes); lane += WIDTH) {
        float* to = panels + panels_size<WIDTH>(lane, depth) + k * WIDTH;
        if (lanes - lane >= WIDTH) {
          std::memcpy(to, m.at(lane, k), WIDTH * sizeof(float));
        } else {
          std::fill(std::copy_n(m.at(lane, k), lanes - lane, to), to + WIDTH, 0.0f);
        }
      }
    }
  }
}

// The same where each lane lies along memory: blocks of GROUP lanes x LANES depths are transposed. What comes out is
// LANES rows of GROUP floats, which lie WIDTH apart in the panel, or end to end where a group is as wide as the panel.
template <int WIDTH>
void transpose_panels(Matrix m, int64_t lanes, int64_t depth, float* panels) {
  constexpr int GROUP = WIDTH < LANES ? WIDTH : LANES, STEP = GROUP < WIDTH ? WIDTH : LANES;
  static_assert(WIDTH % GROUP == 0, "a panel is whole groups");
  for (int64_t lane = 0; lane < ceil_div(lanes, WIDTH) * WIDTH; lane += GROUP) {
    float* to = panels + lane / WIDTH * panel_size<WIDTH>(depth) + lane % WIDTH;
    for (int64_t k = 0; k < depth; k += LANES, to += LANES * WIDTH) {
      vec v[GROUP];
      for (int i = 0; i < GROUP; i++) __builtin_prefetch(m.at(lane + GROUP + i, k));  // of the next group
      for (int i = 0; i < GROUP; i++) v[i] = lane + i < lanes ? load_up_to(m.at(lane + i, k), depth - k) : vec{};
      transpose(v);
      for (int i = 0; i < GROUP; i++) store(to + i * STEP, v[i]);
    }
  }
}

template <int WIDTH>
void pack(Matrix m, int64_t lanes, int64_t depth, float* panels) {
  (m.row == 1 ? copy_panels<WIDTH> : transpose_panels<WIDTH>)(m, lanes, depth, panels);
}

// Rows i .. i + rows - 1 of A, and columns j .. j + columns - 1 of B, for the terms k .. k + depth - 1 of the sum.
inline void pack_a(const Product& p, int64_t i, int64_t rows, int64_t k, int64_t depth, float* panels) {
  pack<TILE_ROWS>({p.a.at(i, k), p.a.row, p.a.column}, rows, depth, panels);
}
inline void pack_b(const Product& p, int64_t j, int64_t columns, int64_t k, int64_t depth, float* panels) {
  pack<TILE_COLUMNS>({p.b.at(k, j), p.b.column, p.b.row}, columns, depth, panels);
}

// How the rungs walk that pack B alone: block by block of the sum, all of B is packed, and then the threads call
// columns(j, k, depth, panel) for every panel: the columns of C from j on, `depth` terms of the sum from k on.
template <class Columns>
void for_each_panel(const Product& p, Columns columns) {
  static thread_local Scratch scratch;
  int64_t step = block_depth(p.K);
  float* b = scratch.get(panels_size<TILE_COLUMNS>(p.N, step));
  for (int64_t k = 0; k < p.K; k += step) {
    int64_t depth = std::min(step, p.K - k);
    parallel_for(p.N, TILE_COLUMNS, [&](int64_t begin, int64_t end) {
      pack_b(p, begin, end - begin, k, depth, b + panels_size<TILE_COLUMNS>(begin, depth));
    });
    parallel_for(p.N, TILE_COLUMNS,
                 [&](int64_t j, int64_t) { columns(j, k, depth, b + panels_size<TILE_COLUMNS>(j, depth)); });
  }
}

}  // namespace minigpt
