// Panels: a matrix laid out in the order in which the innermost loop reads it, whatever its strides were.
//
// A panel holds WIDTH lanes side by side, depth by depth: panel[k * WIDTH + lane]. The lanes are rows of A or columns
// of B, the depth is the index that the product sums over. Lanes beyond the edge of the matrix are 0.
#pragma once
#include <algorithm>

#include "linear.h"
#include "parallel.h"
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

// Fills panels begin .. end-1 of m (lanes x depth), where the lanes lie side by side: whole cache lines at a time.
template <int WIDTH>
void copy_panels(Matrix m, int64_t lanes, int64_t depth, float* panels, int64_t begin, int64_t end) {
  int64_t size = panel_size<WIDTH>(depth);
  for (int64_t k = 0; k < depth; k++) {
    for (int64_t i = begin; i < end; i++) {
      const float* from = m.at(i * WIDTH, k);
      float* to = panels + i * size + k * WIDTH;
      if (lanes - i * WIDTH >= WIDTH) {
        std::memcpy(to, from, WIDTH * sizeof(float));
      } else {
        std::fill(std::copy_n(from, lanes - i * WIDTH, to), to + WIDTH, 0.0f);
      }
    }
  }
}

// The same where each lane lies along memory: blocks of GROUP lanes x LANES depths are transposed. What comes out is
// LANES rows of GROUP floats, which lie WIDTH apart in the panel, or end to end where a group is as wide as the panel.
template <int WIDTH>
void transpose_panels(Matrix m, int64_t lanes, int64_t depth, float* panels, int64_t begin, int64_t end) {
  constexpr int GROUP = WIDTH < LANES ? WIDTH : LANES, STEP = GROUP < WIDTH ? WIDTH : LANES;
  for (int64_t lane = begin * WIDTH; lane < end * WIDTH; lane += GROUP) {
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

// Panels begin .. end-1 of m, either way.
template <int WIDTH>
void pack(Matrix m, int64_t lanes, int64_t depth, float* panels, int64_t begin, int64_t end) {
  (m.row == 1 ? copy_panels<WIDTH> : transpose_panels<WIDTH>)(m, lanes, depth, panels, begin, end);
}

// Packs all of B's columns, rows k .. k+depth-1, by several threads.
inline void pack_columns(const Product& p, int64_t k, int64_t depth, float* panels) {
  Matrix columns{p.b.at(k, 0), p.b.column, p.b.row};
  parallel_for(ceil_div(p.N, TILE_COLUMNS), 1,
               [&](int64_t begin, int64_t end) { pack<TILE_COLUMNS>(columns, p.N, depth, panels, begin, end); });
}

}  // namespace minigpt
