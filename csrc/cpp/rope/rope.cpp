// y_i = x_i cos - x_j sin, y_j = x_j cos + x_i sin, with j = i + D/2. Both halves of a pair are loaded before either is
// stored, so that y may be x. 8 bytes of memory and 3 FLOPs a number; cos and sin come from the cache for all heads but
// the first, because the heads of one position are turned one after the other.
#include "rope.h"

#include "parallel.h"
#include "simd.h"

namespace minigpt {

void rope(const RopeShape& shape, Heads<const float> x, const float* cos, const float* sin, Heads<float> y) {
  const auto [B, H, T, D, backwards] = shape;
  const int64_t half = D / 2;
  const float direction = backwards ? -1 : 1;
  parallel_for(B * T, rows_per_piece(H * D), [&, H = H, T = T](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const int64_t b = r / T, t = r % T;
      for (int64_t h = 0; h < H; h++) {
        const float* from = x.row(b, h, t);
        float* to = y.row(b, h, t);
        each_vector(half, [&](int64_t i, auto at) {
          vec first = at.load(from + i), second = at.load(from + half + i);
          vec c = at.load(cos + t * half + i), s = direction * at.load(sin + t * half + i);
          at.store(to + i, first * c - second * s);
          at.store(to + half + i, second * c + first * s);
        });
      }
    }
  });
}

}  // namespace minigpt
