// Panels: a matrix laid out in the order in which the innermost loop reads it, whatever its strides were.
//
// A panel holds WIDTH lanes side by side, depth by depth: panel[k * WIDTH + lane]. The lanes are rows of A or columns
// of B, the depth is the index that the product sums over. Lanes beyond the edge of the matrix are 0.
#pragma once
#include <algorithm>

#include "linear.h"
#include "parallel.h"
#include "simd.h"

namespace minigpt {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The floats from one panel to the next: whole vectors along the depth, as transposing writes them.
template <int WIDTH>
int64_t panel_size(int64_t depth) {
  return ceil_div(depth, LANES) * LANES * WIDTH;
}

// Fills one panel from m (lanes x depth), lanes <= WIDTH.
template <int WIDTH>
void pack_panel(Matrix m, int64_t lanes, int64_t depth, float* panel) {
  if (m.row == 1) {  // the lanes lie side by side already
    for (int64_t k = 0; k < depth; k++, panel += WIDTH) {
      if (lanes == WIDTH) {
        std::memcpy(panel, m.at(0, k), WIDTH * sizeof(float));
      } else {
        std::fill(std::copy_n(m.at(0, k), lanes, panel), panel + WIDTH, 0.0f);
      }
    }
    return;
  }
  // Each lane lies along memory: transpose blocks of GROUP lanes x LANES depths. The result is LANES rows of GROUP
  // floats, which lie WIDTH apart in the panel, or end to end where a group is as wide as the panel.
  constexpr int GROUP = WIDTH < LANES ? WIDTH : LANES, STEP = GROUP < WIDTH ? WIDTH : LANES;
  for (int64_t k = 0; k < depth; k += LANES) {
    for (int64_t lane = 0; lane < WIDTH; lane += GROUP) {
      vec v[GROUP];
      for (int i = 0; i < GROUP; i++) v[i] = lane + i < lanes ? load_up_to(m.at(lane + i, k), depth - k) : vec{};
      transpose(v);
      for (int i = 0; i < GROUP; i++) store(panel + k * WIDTH + lane + i * STEP, v[i]);
    }
  }
}

// All panels of m (lanes x depth), by several threads.
template <int WIDTH>
void pack(Matrix m, int64_t lanes, int64_t depth, float* panels) {
  parallel_for(ceil_div(lanes, WIDTH), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      Matrix rest{m.at(i * WIDTH, 0), m.row, m.column};
      pack_panel<WIDTH>(rest, std::min<int64_t>(lanes - i * WIDTH, WIDTH), depth,
                        panels + i * panel_size<WIDTH>(depth));
    }
  });
}

}  // namespace minigpt
