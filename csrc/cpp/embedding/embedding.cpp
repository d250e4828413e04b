// Rows looked up in two tables and added; backward adds rows of gradients into the tables. Nothing but memory traffic:
// forward 12 bytes and 1 FLOP a number, backward 20 bytes and 2 FLOPs.
//
// A token that occurs twice collects two gradients, and two threads must not add to one row at once. So backward
// gives every thread some channels of all rows, not some rows: each number of dwte is added to by one thread only, in
// the order of the tokens.
#include "embedding.h"

#include "parallel.h"
#include "simd.h"

namespace minigpt {

constexpr int64_t CHANNELS = 4 * LANES;  // at most 256 bytes: a slice of a row is whole cache lines

void embedding_forward(const int64_t* tokens, const float* wte, const float* wpe, int64_t position, int64_t B,
                       int64_t T, int64_t C, float* x) {
  parallel_for(B * T, rows_per_piece(C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const float* token = wte + tokens[r] * C;
      const float* place = wpe ? wpe + (position + r % T) * C : nullptr;
      each_vector(C, [&](int64_t i, auto at) {
        vec v = at.load(token + i);
        at.store(x + r * C + i, place ? v + at.load(place + i) : v);
      });
    }
  });
}

static void add_row(const float* from, int64_t n, float* to) {
  each_vector(n, [&](int64_t i, auto at) { at.store(to + i, at.load(to + i) + at.load(from + i)); });
}

void embedding_backward(const float* dx, const int64_t* tokens, int64_t position, int64_t B, int64_t T, int64_t C,
                        float* dwte, float* dwpe) {
  parallel_for(C, CHANNELS, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < B * T; r++) {
      add_row(dx + r * C + begin, end - begin, dwte + tokens[r] * C + begin);
      if (dwpe) add_row(dx + r * C + begin, end - begin, dwpe + (position + r % T) * C + begin);
    }
  });
}

}  // namespace minigpt
