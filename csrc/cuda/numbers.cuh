// The types of the arrays: float, bfloat16 and half. Kernels compute in float; the 16-bit types are only how numbers
// lie in memory and enter the tensor cores, so all they need is conversions. They are two small structs rather than
// the toolkit's cuda_bf16.h and cuda_fp16.h, which take a second to compile and do not exist under the emulator.
#pragma once
#include <cstdint>

#include "ptx.cuh"

enum Dtype : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };  // the `dtype` argument of launchers

struct bfloat16 {  // a float without its lower 16 bits: 8 bits of exponent, 7 of fraction
  uint16_t bits;
};
struct half {  // 5 bits of exponent, 10 of fraction
  uint16_t bits;
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bfloat16 x) { return bf16_to_float(x.bits); }
__device__ inline float to_float(half x) { return f16_to_float(x.bits); }

template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float(float x) {
  return x;
}
template <>
__device__ inline bfloat16 from_float(float x) {
  return {float_to_bf16(x)};
}
template <>
__device__ inline half from_float(float x) {
  return {float_to_f16(x)};
}

// Calls f with a number of the type that a launcher's `dtype` names; 16-bit kernels are only compiled for those two.
template <class F>
inline void by_dtype(int64_t dtype, F f) {
  if (dtype == FLOAT32) f(float{});
  if (dtype == BFLOAT16) f(bfloat16{});
  if (dtype == FLOAT16) f(half{});
}
template <class F>
inline void by_16_bit_dtype(int64_t dtype, F f) {
  if (dtype == BFLOAT16) f(bfloat16{});
  if (dtype == FLOAT16) f(half{});
}

// Two 16-bit numbers in one register, `low` in the lower half: what mma takes, and what is stored as one word.
template <class T>
__device__ inline uint32_t pack(float low, float high);
template <>
__device__ inline uint32_t pack<bfloat16>(float low, float high) {
  return floats_to_bf16x2(low, high);
}
template <>
__device__ inline uint32_t pack<half>(float low, float high) {
  return floats_to_f16x2(low, high);
}
