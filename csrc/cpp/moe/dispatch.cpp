// Tokens are copied to where their experts find them side by side, and what the experts made of them is gathered and
// added up. Nothing but memory traffic: 8 bytes a number of every row. A token knows the places of its rows, so that
// every loop goes over tokens and no two threads write to one place.
#include "moe.h"
#include "parallel.h"
#include "simd.h"

namespace minigpt {

// Calls body(n) for every token, in parallel.
template <class Body>
static void each_token(int64_t N, int64_t numbers, const Body& body) {
  parallel_for(N, rows_per_piece(numbers), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) body(n);
  });
}

// A counting sort: an expert's rows are in the order of the tokens.
void moe_dispatch_forward(const float* x, const int64_t* experts, int64_t N, int64_t k, int64_t C, int64_t E,
                          float* rows, int64_t* place, int64_t* offsets) {
  std::fill_n(offsets, E + 1, int64_t{0});
  for (int64_t i = 0; i < N * k; i++) offsets[experts[i] + 1]++;
  for (int64_t e = 0; e < E; e++) offsets[e + 1] += offsets[e];
  for (int64_t i = 0; i < N * k; i++) place[i] = offsets[experts[i]]++;  // now offsets[e] is where e ends,
  for (int64_t e = E; e > 0; e--) offsets[e] = offsets[e - 1];           // which is where e + 1 starts
  offsets[0] = 0;
  each_token(N, k * C, [&](int64_t n) {
    for (int64_t j = 0; j < k; j++) std::copy_n(x + n * C, C, rows + place[n * k + j] * C);
  });
}

// dx = the sum of a token's rows: combine with gates of 1.
void moe_dispatch_backward(const float* drows, const int64_t* place, int64_t N, int64_t k, int64_t C, float* dx) {
  each_token(N, k * C, [&](int64_t n) {
    each_vector(C, [&](int64_t i, auto at) {
      vec sum = at.load(drows + place[n * k] * C + i);
      for (int64_t j = 1; j < k; j++) sum += at.load(drows + place[n * k + j] * C + i);
      at.store(dx + n * C + i, sum);
    });
  });
}

void moe_combine_forward(const float* rows, const float* gates, const int64_t* place, int64_t N, int64_t k, int64_t C,
                         float* y) {
  each_token(N, k * C, [&](int64_t n) {
    each_vector(C, [&](int64_t i, auto at) {
      vec sum{};
      for (int64_t j = n * k; j < (n + 1) * k; j++) sum += gates[j] * at.load(rows + place[j] * C + i);
      at.store(y + n * C + i, sum);
    });
  });
}

void moe_combine_backward(const float* dy, const float* rows, const float* gates, const int64_t* place, int64_t N,
                          int64_t k, int64_t C, float* drows, float* dgates) {
  each_token(N, k * C, [&](int64_t n) {
    const float* dy_n = dy + n * C;
    for (int64_t j = n * k; j < (n + 1) * k; j++) {
      const float* row = rows + place[j] * C;
      float* drow = drows + place[j] * C;
      dgates[j] = sum_over(C, [&](int64_t i, auto at) { return at.load(dy_n + i) * at.load(row + i); });
      each_vector(C, [&](int64_t i, auto at) { at.store(drow + i, gates[j] * at.load(dy_n + i)); });
    }
  });
}

}  // namespace minigpt
