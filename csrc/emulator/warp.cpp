// What the lanes of a warp do together: synchronise, shuffle, vote, load matrices and multiply them on the tensor
// cores. Each is written once for all lanes, in the function that the last lane to come calls.
#include "checks.h"
#include "runtime.h"

namespace emulator {
namespace {

template <class F>
void for_lanes(uint32_t mask, F f) {
  for (; mask != 0; mask &= mask - 1) f(__builtin_ctz(mask));
}

// ------------------------------------------------------------------------------------------- barrier, shuffles, votes

void sync_lanes(void* const*, uint32_t mask) { checks::after_warp_barrier(mask); }
const Operation SYNCWARP{"__syncwarp()", sync_lanes, false};

struct Shuffle {
  uint64_t value, result;
  int source;
  Where where;
};
void shuffle_lanes(void* const* lanes, uint32_t mask) {
  for_lanes(mask, [&](int i) {
    Shuffle& s = *static_cast<Shuffle*>(lanes[i]);
    if (mask >> s.source & 1) {
      s.result = static_cast<Shuffle*>(lanes[s.source])->value;
      return;
    }
    s.result = ~uint64_t{0};
    found("warp",
          text("lane %d reads the value of lane %d in the shuffle in {0}, but that lane is not part of it: the "
               "value is undefined",
               i, s.source),
          "Name all lanes that are read in the mask, and let them all make the call.", s.where, Place(),
          &threads[current->id / WARP * WARP + i]);
  });
}
const Operation SHUFFLES[] = {{"__shfl_sync()", shuffle_lanes, false},
                              {"__shfl_up_sync()", shuffle_lanes, false},
                              {"__shfl_down_sync()", shuffle_lanes, false},
                              {"__shfl_xor_sync()", shuffle_lanes, false}};

struct Exchange {
  int64_t value, result;
  int operation;
};
Exchange& exchange(void* const* lanes, int i) { return *static_cast<Exchange*>(lanes[i]); }

void vote_lanes(void* const* lanes, uint32_t mask) {
  uint32_t ballot = 0;
  for_lanes(mask, [&](int i) { ballot |= exchange(lanes, i).value != 0 ? 1u << i : 0; });
  for_lanes(mask, [&](int i) {
    Exchange& e = exchange(lanes, i);
    e.result = e.operation == BALLOT ? ballot : e.operation == ALL ? ballot == mask : ballot != 0;
  });
}
const Operation VOTES[] = {
    {"__ballot_sync()", vote_lanes, false}, {"__all_sync()", vote_lanes, false}, {"__any_sync()", vote_lanes, false}};

void match_lanes(void* const* lanes, uint32_t mask) {
  for_lanes(mask, [&](int i) {
    exchange(lanes, i).result = 0;
    for_lanes(mask, [&](int j) {
      if (exchange(lanes, i).value == exchange(lanes, j).value) exchange(lanes, i).result |= int64_t{1} << j;
    });
  });
}
const Operation MATCH{"__match_any_sync()", match_lanes, false};

int64_t combine(int operation, int64_t a, int64_t b) {
  switch (operation) {
    case ADD:
      return a + b;
    case MIN:
      return a < b ? a : b;
    case MAX:
      return a > b ? a : b;
    case AND:
      return a & b;
    case OR:
      return a | b;
    default:
      return a ^ b;
  }
}
void reduce_lanes(void* const* lanes, uint32_t mask) {
  const Exchange& first = exchange(lanes, __builtin_ctz(mask));
  int64_t result = first.value;
  for_lanes(mask & (mask - 1), [&](int i) { result = combine(first.operation, result, exchange(lanes, i).value); });
  for_lanes(mask, [&](int i) { exchange(lanes, i).result = result; });
}
const Operation REDUCE{"__reduce_sync()", reduce_lanes, false};

// -------------------------------------------------------------------------------------------------------- tensor cores

struct LoadMatrices {
  uint32_t* out;
  int n;
  bool transposed;
  const void* row;
  Where where;
};
// Lane i hands in the address of row i % 8 of matrix i / 8, and gets of every matrix two neighbours of row i / 4:
// columns 2 (i % 4) and the next; of row and column exchanged when `transposed`.
void load_lanes(void* const* lanes, uint32_t mask) {
  const LoadMatrices& first = *static_cast<LoadMatrices*>(lanes[0]);
  uint16_t matrix[8][8];
  for (int m = 0; m < first.n; ++m) {
    for (int r = 0; r < 8; ++r) std::memcpy(matrix[r], static_cast<LoadMatrices*>(lanes[8 * m + r])->row, 16);
    for_lanes(mask, [&](int i) {
      int r = i / 4, c = i % 4 * 2;
      uint32_t low = first.transposed ? matrix[c][r] : matrix[r][c];
      uint32_t high = first.transposed ? matrix[c + 1][r] : matrix[r][c + 1];
      static_cast<LoadMatrices*>(lanes[i])->out[m] = low | high << 16;
    });
  }
}
const Operation LDMATRIX{"ldmatrix", load_lanes, true};

inline float widen(uint16_t x, Number number) {
  uint32_t bits = uint32_t{x} << 16;
  if (number == FLOAT16) {
    // Exponent and mantissa in place, times 2^112, which also makes subnormal numbers right; infinity and NaN apart.
    uint32_t magnitude = (x & 0x7fffu) << 13;
    bits = (x & 0x8000u) << 16 | bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f);
    if ((x & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u | magnitude;
  }
  return bits_as<float>(bits);
}

struct Multiply {
  Number number;
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  const float* c;
};
// Lane i holds, with r = i / 4 and k = 2 (i % 4), each a pair of neighbours in a row of a or a column of b:
//   a[0] = A[r][k], a[1] = A[r + 8][k], a[2] = A[r][k + 8], a[3] = A[r + 8][k + 8]
//   b[0] = B[k][r], b[1] = B[k + 8][r]
//   c[0..1] = C[r][k], c[2..3] = C[r + 8][k]
void multiply_lanes(void* const* lanes, uint32_t mask) {
  counters::tensor_flops(2 * 16 * 8 * 16);
  float A[16][16], B[16][8], C[16][8];
  for_lanes(mask, [&](int i) {
    const Multiply& m = *static_cast<Multiply*>(lanes[i]);
    int r = i / 4, k = i % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      auto number = [&](uint32_t pair) { return widen(static_cast<uint16_t>(pair >> 16 * half), m.number); };
      A[r][k + half] = number(m.a[0]);
      A[r + 8][k + half] = number(m.a[1]);
      A[r][k + 8 + half] = number(m.a[2]);
      A[r + 8][k + 8 + half] = number(m.a[3]);
      B[k + half][r] = number(m.b[0]);
      B[k + 8 + half][r] = number(m.b[1]);
      C[r][k + half] = m.c[half];
      C[r + 8][k + half] = m.c[2 + half];
    }
  });
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j) C[i][j] += A[i][k] * B[k][j];
  for_lanes(mask, [&](int i) {
    float* d = static_cast<Multiply*>(lanes[i])->d;
    int r = i / 4, k = i % 4 * 2;
    d[0] = C[r][k], d[1] = C[r][k + 1];
    d[2] = C[r + 8][k], d[3] = C[r + 8][k + 1];
  });
}
const Operation MMA{"mma.m16n8k16", multiply_lanes, true};

}  // namespace

void warp_barrier(uint32_t mask, Where where) {
  if (!skipped("warp barrier", where)) meet(SYNCWARP, mask, nullptr, where);
}

uint64_t shuffle(Direction direction, uint32_t mask, uint64_t value, int by, int width, Where where) {
  const int me = lane(), begin = me & ~(width - 1), end = begin + width;
  int source = direction == FROM   ? begin | (by & (width - 1))
               : direction == UP   ? me - by
               : direction == DOWN ? me + by
                                   : me ^ by;
  if (source >= end || (direction == UP && source < begin)) source = me;
  Shuffle s{value, 0, source, where};
  meet(SHUFFLES[direction], mask, &s, where);
  return s.result;
}

uint32_t vote(Vote operation, uint32_t mask, int predicate, Where where) {
  Exchange e{predicate, 0, operation};
  meet(VOTES[operation], mask, &e, where);
  return static_cast<uint32_t>(e.result);
}

uint32_t match_any(uint32_t mask, uint64_t value, Where where) {
  Exchange e{static_cast<int64_t>(value), 0, 0};
  meet(MATCH, mask, &e, where);
  return static_cast<uint32_t>(e.result);
}

int64_t reduce(Reduction operation, uint32_t mask, int64_t value, Where where) {
  Exchange e{value, 0, operation};
  meet(REDUCE, mask, &e, where);
  return e.result;
}

void load_matrices(uint32_t* out, int n, bool transposed, const void* row, Where where) {
  if (lane() < 8 * n) checks::shared_row(row, where);
  LoadMatrices load{out, n, transposed, row, where};
  meet(LDMATRIX, ~0u, &load, where);
}

void mma_m16n8k16(Number number, float* d, const uint32_t* a, const uint32_t* b, const float* c, Where where) {
  Multiply multiply{number, d, a, b, c};
  meet(MMA, ~0u, &multiply, where);
}

}  // namespace emulator
