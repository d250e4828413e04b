// The matrix product behind `linear`, as a ladder: each rung computes the same Product, with one idea more.
//
//   naive           a dot product for every output
//   panels          B copied into panels, so that one row of outputs stays in registers
//   register_tile   several rows of outputs at a time: a vector of B, once loaded, serves them all
//   blocked         A in panels as well, and the sum cut in blocks, so that what the registers read stays in the caches
//
// The layer needs three products, which differ in strides alone:
//   y (M, N) = x W^T        dx (M, K) = dy W        dW (N, K) = dy^T x
#pragma once
#include <cstdint>

#include "ladder.h"

namespace minigpt {

// A view of floats: element (i, j) is data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row, column;

  const float* at(int64_t i, int64_t j) const { return data + i * row + j * column; }
  Matrix transposed() const { return {data, column, row}; }
};

// C (M, N) = A (M, K) B (K, N) + bias (N). In A and in B one of the two strides is 1; the rows of C are contiguous.
struct Product {
  int64_t M, N, K;
  Matrix a, b;
  float* c;
  const float* bias = nullptr;
  bool accumulate = false;  // adds to what C holds; then there is no bias
  float* gelu = nullptr;    // gelu(C) (M, N), for the last rung alone
};

using product_function = void(const Product&);
product_function product_naive, product_panels, product_register_tile, product_blocked;

constexpr Rung<product_function> LINEAR[] = {
    {"naive", product_naive},
    {"panels", product_panels},
    {"register_tile", product_register_tile},
    {"blocked", product_blocked},
};

// Products with at most FEW_ROWS rows of A, whose time is that of reading B once (few_rows.cpp).
constexpr int64_t FEW_ROWS = 8;
product_function product_few_rows;

// sums (N) = the sum of the rows of x (M, N), or plus that sum: the gradient of the bias.
void sum_rows(const float* x, int64_t M, int64_t N, float* sums, bool accumulate);

}  // namespace minigpt
