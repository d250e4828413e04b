// Calls every kernel on ragged shapes, with buffers on the heap that are exactly as large as they must be, so that the
// address sanitizer sees a single float too far; with several threads, so that the thread sanitizer sees every pair of
// accesses that nothing orders. Built and run by test_sanitizers.py. Results are checked elsewhere; here they only must
// not be NaN.
//
//   sanitize small | full        all kernels
//   sanitize overrun | race      the mistakes themselves, to see that the sanitizer is awake
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "adamw/adamw.h"
#include "attention/attention.h"
#include "cross_entropy/cross_entropy.h"
#include "embedding/embedding.h"
#include "gelu/gelu.h"
#include "layernorm/layernorm.h"
#include "linear/linear.h"
#include "parallel.h"
#include "residual_layernorm/residual_layernorm.h"
#include "rmsnorm/rmsnorm.h"
#include "rope/rope.h"
#include "simd.h"
#include "swiglu/swiglu.h"

using namespace minigpt;

static uint32_t state = 1;
static uint32_t next_random() { return (state = state * 1664525u + 1013904223u) >> 8; }

// n numbers in [-1, 2); check() says whether one of them has become NaN.
class Floats {
 public:
  explicit Floats(int64_t n) : n_(n), data_(new float[n]) {
    for (int64_t i = 0; i < n; i++) data_[i] = next_random() % 3000 / 1000.0f - 1;
  }
  operator float*() { return data_.get(); }
  void check(const char* what) const {
    for (int64_t i = 0; i < n_; i++) {
      if (std::isnan(data_[i])) std::printf("%s[%lld] is NaN\n", what, static_cast<long long>(i)), std::exit(1);
    }
  }

 private:
  int64_t n_;
  std::unique_ptr<float[]> data_;
};

static std::vector<int64_t> integers(int64_t n, int64_t limit) {
  std::vector<int64_t> result(n);
  for (int64_t& x : result) x = next_random() % limit;
  return result;
}

static void attention(int64_t B, int64_t H, int64_t Hkv, int64_t Tq, int64_t Tk, int64_t D, bool causal) {
  AttentionShape shape{B, H, Hkv, Tq, Tk, D, causal, 1 / std::sqrt(static_cast<float>(D))};
  Floats q(B * H * Tq * D), k(B * Hkv * Tk * D), v(B * Hkv * Tk * D), out(B * H * Tq * D), dout(B * H * Tq * D);
  Floats lse(B * H * Tq), dq(B * H * Tq * D), dk(B * Hkv * Tk * D), dv(B * Hkv * Tk * D);
  // q, out and their gradients lie as (B, T, H, D), as in the packed projection; k and v head by head.
  auto queries = [&](float* x) { return Heads<float>{x, Tq * H * D, D, H * D}; };
  auto keys = [&](float* x) { return Heads<float>{x, Hkv * Tk * D, Tk * D, D}; };
  auto read = [](Heads<float> x) { return Heads<const float>{x.data, x.batch_stride, x.head_stride, x.row_stride}; };
  for (auto rung : attention_forward_ladder) {
    rung.run(shape, read(queries(q)), read(keys(k)), read(keys(v)), queries(out), lse);
    out.check(rung.name);
  }
  for (auto rung : attention_backward_ladder) {
    rung.run(shape, read(queries(dout)), read(queries(q)), read(keys(k)), read(keys(v)), read(queries(out)), lse,
             queries(dq), keys(dk), keys(dv));
    dq.check(rung.name), dk.check(rung.name), dv.check(rung.name);
  }
}

static void norms(int64_t rows, int64_t C) {
  Floats x(rows * C), residual(rows * C), dy(rows * C), h(rows * C), y(rows * C), dx(rows * C);
  Floats weight(C), bias(C), mean(rows), rstd(rows), dweight(C), dbias(C);
  for (auto rung : layernorm_forward_ladder) {
    rung.run(x, weight, nullptr, rows, C, 1e-5f, y, mean, rstd);
    rung.run(x, weight, bias, rows, C, 1e-5f, y, mean, rstd);
    y.check(rung.name);
  }
  for (auto rung : layernorm_backward_ladder) {
    rung.run(dy, x, weight, mean, rstd, rows, C, false, dx, dweight, dbias);
    rung.run(dy, x, weight, mean, rstd, rows, C, true, dx, dweight, dbias);
    dx.check(rung.name), dweight.check(rung.name), dbias.check(rung.name);
  }
  residual_layernorm_forward(x, residual, weight, bias, rows, C, 1e-5f, h, y, mean, rstd);
  residual_layernorm_backward(dx, dy, h, weight, mean, rstd, rows, C, true, dx, dweight, dbias);
  rmsnorm_forward(x, weight, rows, C, 1e-5f, y, rstd);
  rmsnorm_backward(dy, x, weight, rstd, rows, C, true, dx, dweight);
  y.check("rmsnorm y"), dx.check("rmsnorm dx"), dweight.check("rmsnorm dweight");
}

static void linear(int64_t M, int64_t K, int64_t N) {
  Floats x(M * K), weight(N * K), bias(N), y(M * N), gelu(M * N), dy(M * N), dx(M * K), dweight(N * K), dbias(N);
  for (auto rung : linear_ladder) {
    linear_forward(rung.run, x, weight, bias, M, N, K, y, nullptr);
    linear_backward(rung.run, dy, x, weight, M, N, K, true, dx, dweight, dbias);
    y.check(rung.name), dx.check(rung.name), dweight.check(rung.name), dbias.check(rung.name);
  }
  linear_forward(product_blocked, x, weight, bias, M, N, K, y, gelu);
  gelu.check("linear gelu");
}

static void elementwise(int64_t n) {
  Floats x(n), y(n), z(n), m(n), v(n);
  gelu_forward(x, n, y), gelu_backward(x, y, n, z);
  swiglu_forward(x, y, n, z), swiglu_backward(x, y, z, n, m, v);
  y.check("gelu"), z.check("swiglu"), m.check("dgate"), v.check("dup");
  for (int64_t i = 0; i < n; i++) v[i] = v[i] * v[i];
  adamw({3, 1e-3, 0.9, 0.999, 1e-8, 0.1, 1.0}, x, n, y, m, v);
  y.check("adamw");
  if (std::isnan(squared_norm(x, n))) std::exit(1);
}

static void lookups(int64_t B, int64_t T, int64_t V, int64_t C) {
  Floats wte(V * C), wpe((T + 2) * C), x(B * T * C), logits(B * T * V), losses(B * T), lse(B * T);
  auto tokens = integers(B * T, V);
  embedding_forward(tokens.data(), wte, wpe, 2, B, T, C, x);
  embedding_backward(x, tokens.data(), 2, B, T, C, wte, wpe);
  embedding_forward(tokens.data(), wte, nullptr, 0, B, T, C, x);
  x.check("embedding"), wte.check("dwte"), wpe.check("dwpe");
  tokens[0] = -100;
  cross_entropy_forward(logits, tokens.data(), -100, B * T, V, losses, lse);
  cross_entropy_backward(0.1f, logits, tokens.data(), lse, -100, B * T, V, logits);
  losses.check("losses"), logits.check("dlogits");
}

static void rotations(int64_t B, int64_t H, int64_t T, int64_t D) {
  Floats x(B * H * T * D), y(B * H * T * D), cos(T * D / 2), sin(T * D / 2);
  Heads<const float> in{x, H * T * D, T * D, D};
  rope({B, H, T, D, false}, in, cos, sin, {y, H * T * D, T * D, D});
  rope({B, H, T, D, true}, in, cos, sin, {x, H * T * D, T * D, D});
  y.check("rope"), x.check("rope backward");
}

static void every_kernel(bool full) {
  const std::vector<int64_t> small{1, 3, 17, 65}, large{1, 2, 3, 7, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 200};
  const std::vector<int64_t>& sizes = full ? large : small;
  for (int64_t T : sizes) {
    attention(1, 2, 1, T, T, T % 40 + 1, true);
    attention(1, 2, 2, T, 33, 16, true);
    attention(1, 2, 2, 33, T, 20, false);
    if (full) attention(2, 4, 2, T, T + 70, 64, true), attention(1, 1, 1, T + 70, T, 128, true);
    norms(T, 3 * T - 2), norms(100, T), norms(T, 129);
    linear(T, 19, 50), linear(20, T, 49), linear(9, 33, T);
    elementwise(T), elementwise(1000 * T + 1);
    lookups(2, T, T + 4, 2 * T + 1);
    rotations(2, 3, T, 2 * (T % 30 + 1));
  }
  attention(1, 1, 1, 5, 9, 256, true);
  linear(140, 400, 70), linear(1030, 2, 9), linear(12, 2, 3100);
  if (full) norms(2100, 600), lookups(1, 3, 50257, 8), linear(300, 800, 500);
}

int main(int, char** arguments) {
  const std::string what = arguments[1];
  set_num_threads(3);
  if (what == "overrun") {
    Floats x(17), y(16);
    gelu_forward(x, 17, y);
  } else if (what == "race") {
    int64_t sum = 0;
    std::atomic<int> started{0};
    parallel_for(2, 1, [&](int64_t begin, int64_t) {
      started.fetch_add(1, std::memory_order_relaxed);
      while (started.load(std::memory_order_relaxed) < 2) std::this_thread::yield();
      sum += begin;
    });
    std::printf("%lld\n", static_cast<long long>(sum));
  } else {
    every_kernel(what == "full");
    streaming_threshold = 0;
    every_kernel(what == "full");
    std::printf("all kernels ran\n");
  }
}
