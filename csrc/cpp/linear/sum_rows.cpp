// The gradient of the bias: the sum over the rows of dy. 4 M N bytes for M N FLOPs: as fast as memory is read.
#include <algorithm>

#include "linear.h"
#include "parallel.h"

namespace minigpt {

void sum_rows(const float* x, int64_t M, int64_t N, float* sums, bool accumulate) {
  constexpr int64_t WIDTH = 128;  // columns at a time: their sums stay in registers or L1, a row's share is a stretch
  parallel_for(N, WIDTH, [&](int64_t begin, int64_t end) {
    float total[WIDTH] = {};
    for (int64_t i = 0; i < M; i++) {
      for (int64_t j = begin; j < end; j++) total[j - begin] += x[i * N + j];
    }
    for (int64_t j = begin; j < end; j++) sums[j] = accumulate ? sums[j] + total[j - begin] : total[j - begin];
  });
}

}  // namespace minigpt
