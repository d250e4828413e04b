// The instructions of the GPU that C++ has no words for, one tiny function each: all inline PTX of the project is here
// (that of the Hopper kernel in ptx_hopper.cuh). The second half of the file says what each does on the CPU: a line of
// C++, or a question to the emulator where the lanes of a warp act together.
//
// mma, ldmatrix and cp.async exist from sm_80 on: files that use them say "needs sm_80" in their first lines, and are
// not compiled for older GPUs.
#pragma once
#include <cstdint>

struct bfloat16;
struct half;

#ifndef MINIGPT_EMULATED

// ---------------------------------------------------------------------------------------------------------------
// tensor cores

// C += A B for one warp: A is 16 x 16, B 16 x 8, C 16 x 8, each spread over the 32 lanes. A and B are 16-bit numbers,
// two in a register, the lower index in the lower half; C is float32. With g = lane / 4 and t = lane % 4, a lane holds
//
//   A        columns 2t, 2t+1    2t+8, 2t+9      B          column g        C        columns 2t, 2t+1
//   row g          a[0]            a[2]          rows 2t, 2t+1    b[0]      row g        c[0], c[1]
//   row g+8        a[1]            a[3]          rows 2t+8, 2t+9  b[1]      row g+8      c[2], c[3]
template <class T>
__device__ inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ inline void mma_m16n8k16<bfloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ inline void mma_m16n8k16<half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The 32-bit address within shared memory, which the instructions want, of an ordinary pointer into it.
__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Loads four 8 x 8 matrices of 16-bit numbers from shared memory. The row r of matrix i (16 bytes) lies where lane
// 8 i + r points. r[i] gets the two numbers of matrix i in row g, columns 2t and 2t+1: a quarter of A above, or half of
// B if the rows in memory are the columns of B. With _trans, the two in rows 2t and 2t+1, column g.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---------------------------------------------------------------------------------------------------------------
// copies that go on while the thread does

// Copies `bytes` (0 to 16) from global to shared memory and fills up to 16 with zeros; both addresses are multiples of
// 16. The copy may happen at any time until a wait for its group.
__device__ inline void cp_async_16(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
// Closes a group: all copies of this thread since the last commit.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N groups of this thread, the latest ones, are still under way. Copies of other threads are here
// after their wait and a __syncthreads().
template <int N>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---------------------------------------------------------------------------------------------------------------
// numbers

// 2^x in one instruction, to about 2 units in the last place; below 2^-126 it is 0.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// To 16 bits, rounded to nearest, ties to even. Of a pair, `low` goes to the lower half.
__device__ inline uint16_t float_to_bf16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
#else
  const uint32_t bits = __float_as_uint(x);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
}
__device__ inline uint16_t float_to_f16(float x) {
  uint16_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
__device__ inline uint32_t floats_to_bf16x2(float low, float high) {  // needs sm_80
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
__device__ inline uint32_t floats_to_f16x2(float low, float high) {  // needs sm_80
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
__device__ inline float bf16_to_float(uint16_t x) { return __uint_as_float(uint32_t(x) << 16); }
__device__ inline float f16_to_float(uint16_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}

#else  // the same on the CPU. `where` is the line that called, for the emulator's reports.

template <class T>
inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         emulator::Where where = emulator::Where()) {
  emulator::mma_m16n8k16(std::is_same_v<T, half> ? emulator::FLOAT16 : emulator::BFLOAT16, c, a, b, c, where);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, emulator::Where where = emulator::Where()) {
  emulator::load_matrices(r, 4, false, row, where);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, emulator::Where where = emulator::Where()) {
  emulator::load_matrices(r, 4, true, row, where);
}

inline void cp_async_16(void* shared, const void* global, int bytes, emulator::Where where = emulator::Where()) {
  emulator::copy_async(shared, global, 16, bytes, where);
}
inline void cp_async_commit(emulator::Where where = emulator::Where()) { emulator::copy_async_commit(where); }
template <int N>
inline void cp_async_wait(emulator::Where where = emulator::Where()) {
  emulator::copy_async_wait(N, where);
}

inline float exp2_approx(float x) { return x < -126 ? 0 : exp2f(x); }

inline uint16_t float_to_bf16(float x) {
  const uint32_t bits = __float_as_uint(x);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint16_t float_to_f16(float x) {
  const float size = fabsf(x);
  const uint32_t bits = __float_as_uint(size), sign = __float_as_uint(x) >> 16 & 0x8000;
  if (x != x) return 0x7fff;
  if (size >= 65520) return sign | 0x7c00;                                         // rounds to infinity
  if (size < 0x1p-14f) return sign | uint32_t(nearbyintf(ldexpf(size, 24)));       // subnormal
  return sign | (((bits + 0xfff + (bits >> 13 & 1)) >> 13) - ((127 - 15) << 10));  // 127, 15: what exponents start from
}
inline uint32_t floats_to_bf16x2(float low, float high) {
  return float_to_bf16(low) | uint32_t(float_to_bf16(high)) << 16;
}
inline uint32_t floats_to_f16x2(float low, float high) {
  return float_to_f16(low) | uint32_t(float_to_f16(high)) << 16;
}
inline float bf16_to_float(uint16_t x) { return __uint_as_float(uint32_t(x) << 16); }
inline float f16_to_float(uint16_t x) {
  const uint32_t sign = (x & 0x8000u) << 16, rest = x & 0x7fff;
  if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | rest << 13);  // infinity and NaN
  if (rest < 0x0400) return __uint_as_float(sign | __float_as_uint(ldexpf(float(rest), -24)));  // subnormal
  return __uint_as_float(sign | ((rest << 13) + ((127 - 15) << 23)));
}

#endif
