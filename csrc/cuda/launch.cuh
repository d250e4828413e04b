// What launchers share: choosing the instance of a kernel template by the arguments.
#pragma once
#include "numbers.cuh"

template <int N>
struct Width {
  static constexpr int value = N;
};

// Calls body with Width<N>(): N numbers of T fill 16 bytes where `aligned`, else N is 1.
template <class T, class Body>
void with_width(bool aligned, Body body) {
  aligned ? body(Width<16 / sizeof(T)>()) : body(Width<1>());
}

// Whether all these addresses, and distances in bytes, are multiples of 16.
template <class... Place>
bool aligned(Place... place) {
  return (((uintptr_t)place | ...) & 15) == 0;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The grid for n items: at least one block, which finds nothing to do where n is 0, because an empty grid is an error.
inline int64_t blocks_of(int64_t n, int64_t each) { return n ? ceil_div(n, each) : 1; }
