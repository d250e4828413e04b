// One pass over the four arrays: everything that a parameter needs is in registers at once. 28 bytes of memory (four
// reads, three writes) and about 15 FLOPs a parameter, so memory is the limit.
#include "adamw.h"

#include <cmath>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace minigpt {

// m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
// param = param (1 - lr weight_decay) - lr mhat / (sqrt(vhat) + eps), with mhat = m / (1 - beta1^step), vhat likewise.
void adamw(const AdamW& a, const float* grad, int64_t n, float* param, float* m, float* v) {
  const float beta1 = a.beta1, beta2 = a.beta2, rest1 = 1 - a.beta1, rest2 = 1 - a.beta2, eps = a.eps;
  const float scale = a.grad_scale, keep = 1 - a.lr * a.weight_decay;
  const float step_size = a.lr / (1 - std::pow(a.beta1, a.step));
  const float v_correction = 1 / (1 - std::pow(a.beta2, a.step));
  parallel_for(n, PIECE, [&](int64_t begin, int64_t end) {
    each_vector(end - begin, [&](int64_t k, auto at) {
      int64_t i = begin + k;
      vec g = at.load(grad + i) * scale;
      vec m_new = beta1 * at.load(m + i) + rest1 * g;
      vec v_new = beta2 * at.load(v + i) + rest2 * g * g;
      at.store(m + i, m_new);
      at.store(v + i, v_new);
      at.store(param + i, at.load(param + i) * keep - step_size * m_new / (sqrt(v_new * v_correction) + eps));
    });
  });
}

double squared_norm(const float* x, int64_t n) {
  thread_local std::vector<double> partial;
  partial.assign((n + PIECE - 1) / PIECE, 0);
  double* sums = partial.data();
  parallel_for(n, PIECE, [&](int64_t begin, int64_t end) {
    double lane[LANES] = {};
    int64_t i = begin;
    for (; i + LANES <= end; i += LANES) {
      for (int k = 0; k < LANES; k++) lane[k] += static_cast<double>(x[i + k]) * x[i + k];
    }
    for (int k = 0; i < end; i++, k++) lane[k] += static_cast<double>(x[i]) * x[i];
    for (double s : lane) sums[begin / PIECE] += s;
  });
  double total = 0;
  for (double s : partial) total += s;
  return total;
}

}  // namespace minigpt
