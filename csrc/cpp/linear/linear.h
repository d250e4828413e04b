// The matrix product behind `linear`, as a ladder: each rung computes the same Product, with one idea more.
//
//   naive           a dot product for every output
//   panels          B copied into panels and the sum cut in blocks, so that a row of outputs stays in registers
//   register_tile   several rows of outputs at a time: a vector of B, once loaded, serves them all
//   blocked         A in panels as well, and a part of C for each thread, so that what is read stays in its caches
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

constexpr Rung<product_function> linear_ladder[] = {
    {"naive", product_naive},
    {"panels", product_panels},
    {"register_tile", product_register_tile},
    {"blocked", product_blocked},
};

// Products with at most FEW_ROWS rows of A, whose time is that of reading B once (few_rows.cpp).
constexpr int64_t FEW_ROWS = 8;
product_function product_few_rows;

// The layer, made of these products: y (M, N) = x (M, K) weight (N, K)^T + bias, and gelu(y). bias and gelu may be
// null.
void linear_forward(product_function* product, const float* x, const float* weight, const float* bias, int64_t M,
                    int64_t N, int64_t K, float* y, float* gelu);

// dx = dy weight, dweight = dy^T x, dbias = the sum of dy's rows. dx and dbias may be null. dweight and dbias are added
// to what is there where `accumulate`.
void linear_backward(product_function* product, const float* dy, const float* x, const float* weight, int64_t M,
                     int64_t N, int64_t K, bool accumulate, float* dx, float* dweight, float* dbias);

}  // namespace minigpt
