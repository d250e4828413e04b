// C = A B for a few rows of A, as in generating text token by token: M dot products for every column of B.
//
// With so little to compute the time is that of reading B once, so it is read where it lies, in order, and its columns
// (the rows of a weight matrix) must lie along memory. 4 K N bytes for 2 M K N FLOPs.
#include <algorithm>

#include "activation.h"
#include "linear.h"
#include "parallel.h"
#include "simd.h"

namespace minigpt {

// The dot products of one column of B with M rows of A.
template <int M>
static void dot_products(int64_t K, const float* a, int64_t a_row, const float* b, float* result) {
  constexpr int CHAINS = M == 1 ? 4 : M == 2 ? 2 : 1;
  vec sums[M][CHAINS] = {};
  int64_t k = 0;
  for (; k + CHAINS * LANES <= K; k += CHAINS * LANES) {
#pragma GCC unroll 4
    for (int chain = 0; chain < CHAINS; chain++) {
      vec column = load(b + k + chain * LANES);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) sums[m][chain] += load(a + m * a_row + k + chain * LANES) * column;
    }
  }
  for (; k < K; k += LANES) {
    vec column = load_up_to(b + k, K - k);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) sums[m][0] += load_up_to(a + m * a_row + k, K - k) * column;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 4
    for (int chain = 1; chain < CHAINS; chain++) sums[m][0] += sums[m][chain];
    result[m] = sum(sums[m][0]);
  }
}

template <int M>
static void rows(const Product& p) {
  parallel_for(p.N, 64, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j++) {
      float dots[M];
      dot_products<M>(p.K, p.a.data, p.a.row, p.b.at(0, j), dots);
      for (int m = 0; m < M; m++) {
        float& c = p.c[m * p.N + j];
        c = dots[m] + (p.bias ? p.bias[j] : 0) + (p.accumulate ? c : 0);
      }
    }
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
