// The toolkit's header of 16-bit floats, as far as kernels of a course use it: __half (or half) and __half2, their
// conversions, operators and functions. Each operation is done in float and rounded to the nearest half, ties to even:
// for + - * / and sqrt that is the exact result, rounded once.
#pragma once

struct __half {  // 1 bit of sign, 5 of exponent, 10 of fraction
  uint16_t bits;
  __half() = default;
  __half(float x) : bits(round(x)) {}
  __half(double x) : bits(round(static_cast<float>(x))) {}
  __half(int x) : bits(round(static_cast<float>(x))) {}
  operator float() const {
    const uint32_t sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | rest << 13);  // infinity, NaN
    if (rest < 0x0400) return __uint_as_float(sign | __float_as_uint(ldexpf(static_cast<float>(rest), -24)));  // small
    return __uint_as_float(sign | ((rest << 13) + ((127 - 15) << 23)));  // 127, 15: what exponents start from
  }

 private:
  static uint16_t round(float x) {
    const float size = fabsf(x);
    const uint32_t magnitude = __float_as_uint(size), sign = __float_as_uint(x) >> 16 & 0x8000;
    if (x != x) return 0x7fff;
    if (size >= 65520) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to infinity
    const uint32_t rounded = size < 0x1p-14f ? static_cast<uint32_t>(nearbyintf(ldexpf(size, 24)))
                                             : ((magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13) - ((127 - 15) << 10);
    return static_cast<uint16_t>(sign | rounded);
  }
};
typedef __half half;

struct alignas(4) __half2 {
  __half x, y;
};
typedef __half2 half2;

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half __int2half_rn(int x) { return x; }
inline int __half2int_rn(__half x) { return static_cast<int>(nearbyintf(x)); }
inline int __half2int_rz(__half x) { return static_cast<int>(static_cast<float>(x)); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) {
  __half x;
  return x.bits = bits, x;
}
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }

// An operation on halves, and the same on both halves of a pair.
#define EMULATOR_HALF_BINARY(name, sign)                                                                       \
  inline __half operator sign(__half a, __half b) { return static_cast<float>(a) sign static_cast<float>(b); } \
  inline __half2 operator sign(__half2 a, __half2 b) { return {a.x sign b.x, a.y sign b.y}; }                  \
  inline __half& operator sign## = (__half & a, __half b) { return a = a sign b; }                             \
  inline __half2& operator sign## = (__half2 & a, __half2 b) { return a = a sign b; }                          \
  inline __half __h##name(__half a, __half b) { return a sign b; }                                             \
  inline __half2 __h##name##2(__half2 a, __half2 b) { return a sign b; }
EMULATOR_HALF_BINARY(add, +)
EMULATOR_HALF_BINARY(sub, -)
EMULATOR_HALF_BINARY(mul, *)
#undef EMULATOR_HALF_BINARY
inline __half operator/(__half a, __half b) { return static_cast<float>(a) / static_cast<float>(b); }
inline __half2 operator/(__half2 a, __half2 b) { return {a.x / b.x, a.y / b.y}; }
inline __half __hdiv(__half a, __half b) { return a / b; }
inline __half2 __h2div(__half2 a, __half2 b) { return a / b; }
inline __half operator-(__half a) { return __ushort_as_half(a.bits ^ 0x8000); }
inline __half2 operator-(__half2 a) { return {-a.x, -a.y}; }
inline __half __hneg(__half a) { return -a; }
inline __half __habs(__half a) { return __ushort_as_half(a.bits & 0x7fff); }
inline __half __hfma(__half a, __half b, __half c) {
  return fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c));
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

#define EMULATOR_HALF_COMPARE(name, sign)                                                                    \
  inline bool operator sign(__half a, __half b) { return static_cast<float>(a) sign static_cast<float>(b); } \
  inline bool __h##name(__half a, __half b) { return a sign b; }
EMULATOR_HALF_COMPARE(eq, ==)
EMULATOR_HALF_COMPARE(ne, !=)
EMULATOR_HALF_COMPARE(lt, <)
EMULATOR_HALF_COMPARE(le, <=)
EMULATOR_HALF_COMPARE(gt, >)
EMULATOR_HALF_COMPARE(ge, >=)
#undef EMULATOR_HALF_COMPARE
inline bool __hisnan(__half a) { return (a.bits & 0x7fff) > 0x7c00; }
inline bool __hisinf(__half a) { return (a.bits & 0x7fff) == 0x7c00; }
inline __half __hmax(__half a, __half b) { return fmaxf(a, b); }
inline __half __hmin(__half a, __half b) { return fminf(a, b); }

#define EMULATOR_HALF_FUNCTION(name, result) \
  inline __half h##name(__half a) {          \
    const float x = a;                       \
    return result;                           \
  }                                          \
  inline __half2 h2##name(__half2 a) { return {h##name(a.x), h##name(a.y)}; }
EMULATOR_HALF_FUNCTION(sqrt, sqrtf(x))
EMULATOR_HALF_FUNCTION(rsqrt, 1.0f / sqrtf(x))
EMULATOR_HALF_FUNCTION(rcp, 1.0f / x)
EMULATOR_HALF_FUNCTION(exp, expf(x))
EMULATOR_HALF_FUNCTION(exp2, exp2f(x))
EMULATOR_HALF_FUNCTION(log, logf(x))
EMULATOR_HALF_FUNCTION(log2, log2f(x))
EMULATOR_HALF_FUNCTION(sin, sinf(x))
EMULATOR_HALF_FUNCTION(cos, cosf(x))
EMULATOR_HALF_FUNCTION(floor, floorf(x))
EMULATOR_HALF_FUNCTION(ceil, ceilf(x))
EMULATOR_HALF_FUNCTION(rint, nearbyintf(x))
#undef EMULATOR_HALF_FUNCTION
