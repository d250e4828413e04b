// Vectors of floats, as wide as the instruction set has them: 4 lanes on plain x86-64 and arm64, 8 with AVX2, 16 with
// AVX-512. GCC and Clang let +, *, < and ?: work on such types directly, so a kernel is written once, without
// intrinsics, and compiled once per instruction set (setup.py). The compiler fuses a * b + c where FMA exists.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace minigpt {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
constexpr const char* ISA = "avx512";
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
constexpr const char* ISA = "avx2";
#else
constexpr int VECTOR_BYTES = 16;
constexpr const char* ISA = "base";
#endif

constexpr int LANES = VECTOR_BYTES / 4;
typedef float vec __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t ivec __attribute__((vector_size(VECTOR_BYTES)));

inline vec broadcast(float x) { return x - vec{}; }

inline vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

// The first n lanes, the others being `rest`; and their counterpart that leaves memory beyond n alone.
inline vec load_partial(const float* p, int64_t n, float rest = 0) {
  vec v = broadcast(rest);
  std::memcpy(&v, p, n * sizeof(float));
  return v;
}
inline void store_partial(float* p, vec v, int64_t n) { std::memcpy(p, &v, n * sizeof(float)); }

// Writes past the caches, for outputs too large to be found there again. p must be aligned to the vector.
inline void store_streaming(float* p, vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX__)
  _mm256_stream_ps(p, (__m256)v);
#elif defined(__SSE2__)
  _mm_stream_ps(p, (__m128)v);
#else
  store(p, v);
#endif
}

inline vec max(vec a, vec b) { return a > b ? a : b; }

inline float sum(vec v) {
  float s = 0;
  for (int i = 0; i < LANES; i++) s += v[i];
  return s;
}
inline float max(vec v) {
  float m = v[0];
  for (int i = 1; i < LANES; i++) m = v[i] > m ? v[i] : m;
  return m;
}

// The lanes that Lane... numbers, of a (0 .. LANES-1) and b (LANES .. 2 LANES-1).
template <int... Lane>
inline vec shuffle(vec a, vec b, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Lane...);
#else
  return __builtin_shuffle(a, b, ivec{Lane...});
#endif
}

// a0 b0 a1 b1 ... from the lower halves of a and b (half = 0) or from the upper ones (half = 1).
template <int half, int... i>
inline vec interleave(vec a, vec b, std::integer_sequence<int, i...>) {
  return shuffle(a, b, std::integer_sequence<int, (half * LANES + i) / 2 + i % 2 * LANES...>{});
}

// Transposes ROWS (a power of two) vectors in registers: read one after the other they then hold lane 0 of every row,
// lane 1 of every row, and so on. Number the elements in binary, row bits first: a round that interleaves the first
// half of the rows with the second turns that number left by one bit, so log2(ROWS) rounds bring the lane to the front.
template <int ROWS>
inline void transpose(vec (&v)[ROWS]) {
  constexpr auto all = std::make_integer_sequence<int, LANES>{};
  for (int round = 1; round < ROWS; round *= 2) {
    vec w[ROWS];
    for (int i = 0; i < ROWS / 2; i++) {
      w[2 * i] = interleave<0>(v[i], v[i + ROWS / 2], all);
      w[2 * i + 1] = interleave<1>(v[i], v[i + ROWS / 2], all);
    }
    for (int i = 0; i < ROWS; i++) v[i] = w[i];
  }
}

// 2^n * (1 + q), with n an integral float and 1 + q in [0.7, 1.42]: n is added to the exponent field. Below the
// smallest normal number the result is 0, above the largest it is infinity.
inline vec scale_by_power_of_two(vec mantissa, vec n) {
  vec clamped = n < -126.0f ? broadcast(-126.0f) : (n > 127.0f ? broadcast(127.0f) : n);
  ivec bits = (ivec)mantissa + (__builtin_convertvector(clamped, ivec) << 23);
  vec y = (vec)bits;
  y = n < -126.0f ? vec{} : y;
  return n > 127.0f ? broadcast(__builtin_inff()) : y;
}

// e^x, to about 1 ulp. x = n ln 2 + r with |r| <= ln(2) / 2, so e^x = 2^n e^r. ln 2 is split in two so that r is exact;
// adding and taking away 1.5 * 2^23 rounds to the nearest integer. NaN stays NaN, e^-inf is 0.
inline vec exp(vec x) {
  constexpr float ROUND = 12582912.0f, LOG2E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
  vec bounded = x < -104.0f ? broadcast(-104.0f) : (x > 89.0f ? broadcast(89.0f) : x);
  vec n = (bounded * LOG2E + ROUND) - ROUND;
  vec r = (bounded - n * LN2_HIGH) - n * LN2_LOW;
  vec p = broadcast(1.9875691500e-4f);  // minimax polynomial of (e^r - 1 - r) / r^2, from Cephes
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  vec y = p * (r * r) + r + 1.0f;
  vec result = scale_by_power_of_two(y, n);
  return x == x ? result : x;
}

// 1 / (1 + e^-x)
inline vec sigmoid(vec x) { return 1.0f / (1.0f + exp(-x)); }

}  // namespace minigpt
