// See machine_limits.h. These are no kernels of a model; they say how far a kernel is from what the machine allows.
#include "machine_limits.h"

#include <vector>

#include "parallel.h"
#include "simd.h"

namespace minigpt {

// One multiply-add takes about 4 cycles, and two (on some CPUs one) start in each cycle: at least 8 must be under way
// at once. 12 of them, and the two factors, fit in the 16 registers that every instruction set here has.
constexpr int CHAINS = 12;

double limit_fma(int64_t rounds) {
  int64_t pieces = num_threads();
  std::vector<float> sums(pieces);  // kept, so that the compiler cannot leave the work out
  parallel_for(pieces, 1, [&](int64_t piece, int64_t) {
    vec factor = broadcast(0.999f), term = broadcast(0.001f * static_cast<float>(piece + 1));
    vec a[CHAINS];
    for (int j = 0; j < CHAINS; j++) a[j] = broadcast(static_cast<float>(j));
    for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
      for (int j = 0; j < CHAINS; j++) a[j] = a[j] * factor + term;
    }
    vec total = a[0];
    for (int j = 1; j < CHAINS; j++) total += a[j];
    sums[piece] = sum(total);
  });
  volatile float keep = sums[0];
  (void)keep;
  return 2.0 * LANES * CHAINS * static_cast<double>(rounds) * static_cast<double>(pieces);
}

constexpr int64_t GRAIN = 16384;  // floats a piece: 64 KiB, and a multiple of every vector

float limit_read(const float* x, int64_t n) {
  std::vector<float> sums((n + GRAIN - 1) / GRAIN);
  parallel_for(n, GRAIN, [&](int64_t begin, int64_t end) {
    vec a{}, b{}, c{}, d{};
    int64_t i = begin;
    for (; i + 4 * LANES <= end; i += 4 * LANES) {
      a += load(x + i);
      b += load(x + i + LANES);
      c += load(x + i + 2 * LANES);
      d += load(x + i + 3 * LANES);
    }
    float rest = 0;
    for (; i < end; i++) rest += x[i];
    sums[begin / GRAIN] = sum((a + b) + (c + d)) + rest;
  });
  float total = 0;
  for (float s : sums) total += s;
  return total;
}

void limit_triad(float* a, const float* b, const float* c, float s, int64_t n, bool streaming) {
  parallel_for(n, GRAIN, [&](int64_t begin, int64_t end) {
    int64_t i = begin;
    if (streaming) {
      for (; i + LANES <= end; i += LANES) store_streaming(a + i, load(b + i) + s * load(c + i));
    } else {
      for (; i + LANES <= end; i += LANES) store(a + i, load(b + i) + s * load(c + i));
    }
    for (; i < end; i++) a[i] = b[i] + s * c[i];
  });
}

}  // namespace minigpt
