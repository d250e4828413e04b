// Vectors of floats, as wide as the instruction set has them: 4 lanes on plain x86-64 and arm64, 8 with AVX2, 16 with
// AVX-512. GCC and Clang let +, *, < and ?: work on such types directly, so a kernel is written once, without
// intrinsics, and compiled once per instruction set (setup.py). The compiler fuses a * b + c where FMA exists.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__SSE2__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns about its own header (its bug 105593)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
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

// 0, 1, 2 ... in the lanes.
inline ivec lane_numbers() {
  ivec v{};
  for (int i = 0; i < LANES; i++) v[i] = i;
  return v;
}

// ---- memory

inline vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

// The first n lanes, the others being `rest`; and their counterpart that leaves memory beyond n alone.
inline vec load_partial(const float* p, int64_t n, float rest = 0) {
#if defined(__AVX512F__)
  return (vec)_mm512_mask_loadu_ps((__m512)broadcast(rest), static_cast<__mmask16>((1u << n) - 1), p);
#else
  float lanes[LANES];
  for (int i = 0; i < LANES; i++) lanes[i] = i < n ? p[i] : rest;
  return load(lanes);
#endif
}
inline void store_partial(float* p, vec v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#else
  for (int i = 0; i < n; i++) p[i] = v[i];
#endif
}

// The same where n may be LANES or more, and mostly is.
inline vec load_up_to(const float* p, int64_t n) { return n >= LANES ? load(p) : load_partial(p, n); }
inline void store_up_to(float* p, vec v, int64_t n) { n >= LANES ? store(p, v) : store_partial(p, v, n); }

// Whether an output of n floats is too large for the caches of most machines (32 MiB), so that nobody will find it
// there again. A variable, so that tests can have small outputs streamed too.
inline int64_t streaming_threshold = int64_t{8} << 20;
inline bool exceeds_cache(int64_t n) { return n >= streaming_threshold; }

// Writes past the caches. p must be aligned to the vector; after the last one comes streaming_done(), before another
// thread may look.
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
inline void streaming_done() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// ---- loops

// How a loop over vectors looks at memory: at whole vectors or, at a ragged end, at the first n lanes of one (the rest
// being 0).
struct Whole {
  vec load(const float* p) const { return minigpt::load(p); }
  void store(float* p, vec v) const { minigpt::store(p, v); }
  void stream(float* p, vec v) const { minigpt::store(p, v); }
};
struct Part {
  int64_t n;
  vec load(const float* p) const { return load_partial(p, n); }
  void store(float* p, vec v) const { store_partial(p, v, n); }
  void stream(float* p, vec v) const { store_partial(p, v, n); }
};
struct Streamed : Whole {
  void stream(float* p, vec v) const { store_streaming(p, v); }
};

// each_vector(n, [&](int64_t i, auto at) { at.store(y + i, f(at.load(x + i))); }): y = f(x) over n floats.
template <class Body>
inline void each_vector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) body(i, Whole{});
  if (i < n) body(i, Part{n - i});
}

// The same, where at.stream(out + i, v) writes the whole, aligned vectors of the large output `out` past the caches (in
// each_vector it is at.store).
template <class Body>
inline void each_vector_streamed(const float* out, int64_t n, const Body& body) {
  int64_t misaligned = reinterpret_cast<uintptr_t>(out) % VECTOR_BYTES / sizeof(float);
  int64_t i = misaligned == 0 ? 0 : std::min<int64_t>(n, LANES - misaligned);
  if (i > 0) body(0, Part{i});
  for (; i + LANES <= n; i += LANES) body(i, Streamed{});
  if (i < n) body(i, Part{n - i});
}

// ---- lanes

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
  static_assert((ROWS & (ROWS - 1)) == 0, "rounds of halves");
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

// ---- arithmetic

// a > b ? a : b and a < b ? a : b in one instruction. Where a or b is NaN the result is b.
inline vec max(vec a, vec b) {
#if defined(__AVX512F__)
  return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (vec)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}
inline vec min(vec a, vec b) {
#if defined(__AVX512F__)
  return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return (vec)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (vec)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}

inline vec sqrt(vec x) {
#if defined(__AVX512F__)
  return (vec)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__)
  return (vec)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (vec)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < LANES; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// The sum and the largest of the lanes, by halves: lane i meets lane i + LANES / 2 first.
inline float sum(vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float lane[LANES];
  store(lane, v);
  for (int half = LANES / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  }
  return lane[0];
#endif
}
inline float max(vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float lane[LANES];
  store(lane, v);
  for (int half = LANES / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lane[i] = std::max(lane[i], lane[i + half]);
  }
  return lane[0];
#endif
}

// The sum of term(i, at) over n floats. Four sums run side by side, because an addition takes four cycles to come back;
// several short sums also round less than a long one.
template <class Term>
inline float sum_over(int64_t n, const Term& term) {
  vec s0{}, s1{}, s2{}, s3{};
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES) {
    s0 += term(i, Whole{});
    s1 += term(i + LANES, Whole{});
    s2 += term(i + 2 * LANES, Whole{});
    s3 += term(i + 3 * LANES, Whole{});
  }
  for (; i + LANES <= n; i += LANES) s0 += term(i, Whole{});
  if (i < n) {
    int32_t rest = static_cast<int32_t>(n - i);
    s1 += lane_numbers() < rest ? term(i, Part{rest}) : vec{};
  }
  return sum((s0 + s1) + (s2 + s3));
}

// The largest of n >= 1 floats.
inline float max_over(const float* x, int64_t n) {
  vec m0 = broadcast(x[0]), m1 = m0, m2 = m0, m3 = m0;
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES) {
    m0 = max(load(x + i), m0);
    m1 = max(load(x + i + LANES), m1);
    m2 = max(load(x + i + 2 * LANES), m2);
    m3 = max(load(x + i + 3 * LANES), m3);
  }
  for (; i + LANES <= n; i += LANES) m0 = max(load(x + i), m0);
  if (i < n) m0 = max(load_partial(x + i, n - i, x[0]), m0);
  return max(max(max(m0, m1), max(m2, m3)));
}

// y * 2^n for y in [0.7, 1.42] and integral n in [-151, 129]. Results below the smallest normal number become denormal
// ones, results above the largest infinity.
inline vec scale_by_power_of_two(vec y, vec n) {
#if defined(__AVX512F__)
  return (vec)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
  ivec k = __builtin_convertvector(n, ivec), half = k >> 1;  // in two factors, since neither 2^-151 nor 2^129 exists
  return y * (vec)((half + 127) << 23) * (vec)((k - half + 127) << 23);
#endif
}

// e^x, to about 1 ulp over the whole range; e^-inf is 0, NaN stays NaN. x = n ln 2 + r with |r| <= ln(2) / 2, so that
// e^x = 2^n e^r. ln 2 is split in two so that r is exact; adding and taking away 1.5 * 2^23 rounds to an integer.
inline vec exp(vec x) {
  constexpr float ROUND = 12582912.0f, LOG2E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
  vec bounded = max(broadcast(-104.0f), min(broadcast(89.0f), x));  // NaN, as the second argument, comes through
  vec n = (bounded * LOG2E + ROUND) - ROUND;
  vec r = (bounded - n * LN2_HIGH) - n * LN2_LOW;
  vec p = broadcast(1.9875691500e-4f);  // minimax polynomial of (e^r - 1 - r) / r^2, from Cephes
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return scale_by_power_of_two(p * (r * r) + r + 1.0f, n);
}

// 2^x, likewise: exp without the change of base, for kernels that fold log2(e) into a factor they have anyway.
inline vec exp2(vec x) {
  constexpr float ROUND = 12582912.0f;
  vec bounded = max(broadcast(-150.0f), min(broadcast(128.0f), x));
  vec n = (bounded + ROUND) - ROUND, r = bounded - n;
  vec p = broadcast(1.535336188319500e-4f);  // minimax polynomial of (2^r - 1) / r, from Cephes
  p = p * r + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  return scale_by_power_of_two(p * r + 1.0f, n);
}

// 1 / (1 + e^-x)
inline vec sigmoid(vec x) { return 1.0f / (1.0f + exp(-x)); }

}  // namespace minigpt
