// The router: scores from logits, the k best experts of a token, and their gates. A token has E numbers here and
// 6 C F FLOPs in each of its experts, so this file is written to be plain, not fast.
#include <cmath>
#include <vector>

#include "moe.h"
#include "parallel.h"
#include "simd.h"

namespace minigpt {

constexpr float SMALL = 1e-20f;  // added to the sum of gates, which may be 0 where sigmoids underflow

// The scores s (E) of a token: softmax or sigmoids. Returns log(sum(exp(logits))).
static float scores(const Router& router, const float* logits, float* s) {
  const int64_t E = router.E;
  const float largest = max_over(logits, E);
  auto term = [&](int64_t i, auto at) { return exp(at.load(logits + i) - largest); };
  const float total = sum_over(E, term);
  each_vector(E, [&](int64_t i, auto at) {
    at.store(s + i, router.sigmoid ? sigmoid(at.load(logits + i)) : term(i, at) / total);
  });
  return largest + std::log(total);
}

// The k best of n numbers, the best first; of equal ones the first, NaN last.
static void best(const float* x, int64_t n, int64_t k, int64_t* chosen) {
  for (int64_t j = 0; j < k; j++) {
    int64_t winner = -1;
    for (int64_t i = 0; i < n; i++) {
      if (std::find(chosen, chosen + j, i) != chosen + j) continue;
      if (winner < 0 || x[i] > x[winner] || (std::isnan(x[winner]) && !std::isnan(x[i]))) winner = i;
    }
    chosen[j] = winner;
  }
}

// Scores of the experts outside a token's best groups become -inf; a group is as good as its two best experts.
static void keep_best_groups(const Router& router, float* choice) {
  const int64_t size = router.E / router.groups;
  std::vector<float> two_best(router.groups);
  std::vector<int64_t> chosen(router.active_groups);
  for (int64_t g = 0; g < router.groups; g++) {
    int64_t top[2];
    best(choice + g * size, size, 2, top);
    two_best[g] = choice[g * size + top[0]] + choice[g * size + top[1]];
  }
  best(two_best.data(), router.groups, router.active_groups, chosen.data());
  for (int64_t g = 0; g < router.groups; g++) {
    if (std::find(chosen.begin(), chosen.end(), g) == chosen.end()) std::fill_n(choice + g * size, size, -INFINITY);
  }
}

// Calls body(n, s, room, lse) for every token, with its scores s (E), room for E numbers more, and lse = log(sum(exp(logits))).
template <class Body>
static void each_token(const Router& router, const float* logits, const Body& body) {
  parallel_for(router.N, rows_per_piece(8 * router.E), [&](int64_t begin, int64_t end) {
    std::vector<float> s(router.E), room(router.E);
    for (int64_t n = begin; n < end; n++) {
      float lse = scores(router, logits + n * router.E, s.data());
      body(n, s.data(), room.data(), lse);
    }
  });
}

void moe_router_forward(const Router& router, const float* logits, const float* bias, float* gates, int64_t* experts) {
  const int64_t E = router.E, k = router.k;
  each_token(router, logits, [&](int64_t n, const float* s, float* choice, float) {
    for (int64_t e = 0; e < E; e++) choice[e] = bias ? s[e] + bias[e] : s[e];
    if (router.groups > 1) keep_best_groups(router, choice);
    best(choice, E, k, experts + n * k);
    float total = 0;
    for (int64_t j = n * k; j < (n + 1) * k; j++) total += gates[j] = s[experts[j]];
    for (int64_t j = n * k; j < (n + 1) * k; j++) {
      gates[j] *= router.normalize ? router.scale / (total + SMALL) : router.scale;
    }
  });
}

// With g the gates before the scale: dg loses its mean where gates are normalised; then back through the scores.
void moe_router_backward(const Router& router, const float* dgates, const float* logits, const int64_t* experts,
                         float* dlogits) {
  const int64_t E = router.E, k = router.k;
  each_token(router, logits, [&](int64_t n, const float* s, float*, float) {
    const int64_t* chosen = experts + n * k;
    float* dlogit = dlogits + n * E;
    float total = router.normalize ? 0 : 1, mean = 0, sum = 0;
    for (int64_t j = 0; j < k && router.normalize; j++) total += s[chosen[j]];
    for (int64_t j = 0; j < k && router.normalize; j++) mean += s[chosen[j]] / (total + SMALL) * dgates[n * k + j];
    std::fill_n(dlogit, E, 0.0f);
    for (int64_t j = 0; j < k; j++) {
      float score = s[chosen[j]], g = score / (total + SMALL), dg = router.scale * (dgates[n * k + j] - mean);
      dlogit[chosen[j]] = g * dg * (router.sigmoid ? 1 - score : 1);
      sum += g * dg;
    }
    if (router.sigmoid || router.normalize) return;
    for (int64_t e = 0; e < E; e++) dlogit[e] -= s[e] * sum;  // softmax: every logit lowers the other scores
  });
}

// f (E): the share of all choices that fell on each expert.
static std::vector<float> shares(const Router& router, const int64_t* experts) {
  std::vector<float> f(router.E);
  for (int64_t i = 0; i < router.N * router.k; i++) f[experts[i]]++;
  for (float& share : f) share /= router.N * router.k;
  return f;
}

// Sums over tokens in the order of the tokens, in double: the same for any number of threads.
void router_losses_forward(const Router& router, const float* logits, const int64_t* experts, double* balance,
                           double* z) {
  const std::vector<float> f = shares(router, experts);
  std::vector<float> s(router.E);
  *balance = *z = 0;
  for (int64_t n = 0; n < router.N; n++) {
    double lse = scores(router, logits + n * router.E, s.data()), total = 0, weighted = 0;
    for (int64_t e = 0; e < router.E; e++) total += s[e], weighted += double{f[e]} * s[e];
    *balance += router.E * weighted / total / router.N;
    *z += lse * lse / router.N;
  }
}

void router_losses_backward(const Router& router, float dbalance, float dz, const float* logits, const int64_t* experts,
                            float* dlogits) {
  const int64_t E = router.E;
  const std::vector<float> f = shares(router, experts);
  each_token(router, logits, [&](int64_t n, const float* s, float* p, float lse) {
    const float* row = logits + n * E;
    float total = 0, mean = 0;
    for (int64_t e = 0; e < E; e++) total += s[e];
    for (int64_t e = 0; e < E; e++) p[e] = s[e] / total, mean += p[e] * f[e];
    const float dbalance_n = dbalance * E / router.N, dlse = dz * 2 * lse / router.N;
    for (int64_t e = 0; e < E; e++) {
      float dbalance_dlogit = dbalance_n * p[e] * (f[e] - mean) * (router.sigmoid ? 1 - s[e] : 1);
      dlogits[n * E + e] = dbalance_dlogit + dlse * std::exp(row[e] - lse);
    }
  });
}

}  // namespace minigpt
