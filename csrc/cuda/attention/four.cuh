// Four neighbouring numbers at a time, as floats: one access where they are `aligned`, at a multiple of their size in
// memory, else one by one. Of the four there are only `n`, which may be more than 4, or none: the rest are read as 0,
// and not written.
#pragma once
#include "../numbers.cuh"

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T x, y, z, w;
};

template <class T>
__device__ inline float4 load4(const T* from, int n, bool aligned) {
  if (aligned && n >= 4) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(from);
    return make_float4(to_float(four.x), to_float(four.y), to_float(four.z), to_float(four.w));
  }
  return make_float4(n > 0 ? to_float(from[0]) : 0, n > 1 ? to_float(from[1]) : 0, n > 2 ? to_float(from[2]) : 0,
                     n > 3 ? to_float(from[3]) : 0);
}

template <class T>
__device__ inline void store4(T* to, float4 y, int n, bool aligned) {
  const Four<T> four = {from_float<T>(y.x), from_float<T>(y.y), from_float<T>(y.z), from_float<T>(y.w)};
  if (aligned && n >= 4) {
    *reinterpret_cast<Four<T>*>(to) = four;
    return;
  }
  if (n > 0) to[0] = four.x;
  if (n > 1) to[1] = four.y;
  if (n > 2) to[2] = four.z;
  if (n > 3) to[3] = four.w;
}
