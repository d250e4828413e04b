// A (B, heads, T, D) array whose last stride is 1. Heads are usually views of a packed (B, T, 3C) projection.
#pragma once
#include <cstdint>

template <class T>
struct Heads {
  T* data;
  int64_t batch_stride, head_stride, row_stride;

  __host__ __device__ T* row(int64_t b, int64_t h, int64_t t) const {
    return data + b * batch_stride + h * head_stride + t * row_stride;
  }
};

// Whether all rows of x start at multiples of n numbers: what reading n at a time takes.
template <class T>
bool rows_aligned(const Heads<T>& x, int64_t n) {
  return (reinterpret_cast<uintptr_t>(x.data) / sizeof(T) | x.batch_stride | x.head_stride | x.row_stride) % n == 0;
}

// Launchers are given their arrays without a type.
template <class T>
Heads<T> typed(Heads<void> x) {
  return {static_cast<T*>(x.data), x.batch_stride, x.head_stride, x.row_stride};
}
template <class T>
Heads<const T> typed(Heads<const void> x) {
  return {static_cast<const T*>(x.data), x.batch_stride, x.head_stride, x.row_stride};
}
