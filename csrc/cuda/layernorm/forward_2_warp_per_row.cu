// layernorm forward, rung 2: one warp a row.
//
// Lane l takes the numbers l, l + 32, l + 64 ... of the row: the 32 loads of an instruction lie side by side, 128 bytes
// (float32) in 4 sectors instead of 32. Sums are made per lane, then across lanes by five exchanges of registers
// (reduce.cuh), without shared memory and without a barrier. The variance has a pass of its own, as in numpy_ops.py:
// E[x^2] - E[x]^2 would save it, and lose all digits where the mean is large. The second and third pass find the row
// in the L1 cache.
// moved: 8 bytes and 9 FLOPs a number (float32); 32 registers
// counted: 64 rows, C 768, float32: 36,992 sectors of global memory, no shared
// measured: not yet run on a GPU
#include <cmath>

#include "../launch.cuh"
#include "../reduce.cuh"

constexpr int WARPS = 4;  // a block

template <class T>
__global__ void layernorm_forward_warp_kernel(const T* x, const T* weight, const T* bias, T* y, float* mean,
                                              float* rstd, int64_t rows, int64_t C, float eps) {
  int lane = threadIdx.x % 32;
  int64_t r = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32;
  if (r >= rows) return;  // all lanes of a warp, so that those who stay can still exchange
  const T* row = x + r * C;

  float sum = 0;
  for (int64_t i = lane; i < C; i += 32) sum += to_float(row[i]);
  float mu = warp_sum(sum) / C;

  float squares = 0;
  for (int64_t i = lane; i < C; i += 32) {
    float centred = to_float(row[i]) - mu;
    squares += centred * centred;
  }
  float scale = 1 / sqrtf(warp_sum(squares) / C + eps);

  for (int64_t i = lane; i < C; i += 32) {
    float shift = bias ? to_float(bias[i]) : 0;
    y[r * C + i] = from_float<T>((to_float(row[i]) - mu) * scale * to_float(weight[i]) + shift);
  }
  if (lane == 0) {
    mean[r] = mu;
    rstd[r] = scale;
  }
}

extern "C" void layernorm_forward_warp_per_row(int64_t dtype, const void* x, const void* weight, const void* bias,
                                               void* y, float* mean, float* rstd, int64_t rows, int64_t C, float eps,
                                               cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    layernorm_forward_warp_kernel<T><<<ceil_div(rows, WARPS), 32 * WARPS, 0, stream>>>(
        (const T*)x, (const T*)weight, (const T*)bias, (T*)y, mean, rstd, rows, C, eps);
  });
}
