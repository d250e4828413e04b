// C = A B for a few rows of A, as in generating text token by token.
//
// With so little to compute the time is that of reading B once, so it is not copied: its columns (the rows of a weight
// matrix) lie along memory and are read in order, one stream a thread, which memory serves fastest. Every output is a
// dot product, whose sum has as many parts as a vector has lanes. 4 K N bytes for 2 M K N FLOPs.
#include "activation.h"
#include "linear.h"
#include "parallel.h"
#include "simd.h"

namespace minigpt {

// The M outputs at column j.
template <int M>
static void dot_products(const Product& p, int64_t j) {
  vec sums[M] = {};
  auto step = [&](int64_t k, auto read) {
    vec column = read(p.b.at(k, j));
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) sums[m] += read(p.a.at(m, k)) * column;
  };
  int64_t k = 0;
  for (; k + LANES <= p.K; k += LANES) step(k, [](const float* x) { return load(x); });
  if (k < p.K) step(k, [&](const float* x) { return load_partial(x, p.K - k); });
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    float& c = p.c[m * p.N + j];
    c = sum(sums[m]) + (p.bias ? p.bias[j] : 0) + (p.accumulate ? c : 0);
  }
}

template <int M>
static void rows(const Product& p) {
  parallel_for(p.N, 64, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j++) dot_products<M>(p, j);
    for (int m = 0; p.gelu && m < M; m++) {
      for (int64_t j = begin; j < end; j += LANES) {
        store_up_to(p.gelu + m * p.N + j, gelu(load_up_to(p.c + m * p.N + j, end - j)), end - j);
      }
    }
  });
}

void product_few_rows(const Product& p) {
  constexpr product_function* BY_ROWS[FEW_ROWS] = {rows<1>, rows<2>, rows<3>, rows<4>,
                                                   rows<5>, rows<6>, rows<7>, rows<8>};
  BY_ROWS[p.M - 1](p);
}

}  // namespace minigpt
