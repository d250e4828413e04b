// 16 bytes at a time: the widest access a thread can make, and what it takes to reach the memory's speed.
//
// A Pack is N numbers that are loaded and stored together, as one access if they fill 16 bytes at an address that is a
// multiple of 16. Where arrays do not lie so, kernels run with N = 1, which is slower and otherwise the same code.
// Reading a number out of a pack gives a float, writing one rounds it to T.
#pragma once
#include "numbers.cuh"

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T number[N];

  __device__ float operator[](int k) const { return to_float(number[k]); }
  __device__ void set(int k, float value) { number[k] = from_float<T>(value); }
};

// The numbers i .. i + N - 1 of an array of n, as a pack; those behind the end are 0, and not stored.
template <int N, class T>
__device__ Pack<T, N> load(const T* x, int64_t i, int64_t n) {
  if (i + N <= n) return *reinterpret_cast<const Pack<T, N>*>(x + i);
  Pack<T, N> result;
  for (int k = 0; k < N; k++) result.number[k] = i + k < n ? x[i + k] : from_float<T>(0);
  return result;
}

template <int N, class T>
__device__ void store(T* x, int64_t i, int64_t n, const Pack<T, N>& values) {
  if (i + N <= n) {
    *reinterpret_cast<Pack<T, N>*>(x + i) = values;
  } else {
    for (int k = 0; k < N && i + k < n; k++) x[i + k] = values.number[k];
  }
}
