// layernorm forward, rung 1: one thread a row, the formula as it stands in numpy_ops.py.
//
// The threads of a warp work on 32 rows, so that one load touches 32 places C numbers apart: 32 sectors of 32 bytes
// for 32 numbers. Of each sector an eighth is used (float32), and by the time the rest is wanted the cache has lost it.
// A row is read three times: mean, variance, result; and there are only as many threads as rows.
// moved: 16 bytes (float32), in sectors up to 8 times as many, and 8 FLOPs a number; 32 registers
// counted: 64 rows, C 768, float32: 199,696 sectors of global memory, no shared
// measured: not yet run on a GPU
#include <cmath>

#include "../launch.cuh"

template <class T>
__global__ void layernorm_forward_naive_kernel(const T* x, const T* weight, const T* bias, T* y, float* mean,
                                               float* rstd, int64_t rows, int64_t C, float eps) {
  int64_t r = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (r >= rows) return;
  const T* row = x + r * C;

  double sum = 0;  // in one float, a sum of thousands would lose digits
  for (int64_t i = 0; i < C; i++) sum += to_float(row[i]);
  float mu = sum / C;

  double squares = 0;
  for (int64_t i = 0; i < C; i++) {
    float centred = to_float(row[i]) - mu;
    squares += centred * centred;
  }
  float scale = 1 / sqrtf(squares / C + eps);

  for (int64_t i = 0; i < C; i++) {
    float shift = bias ? to_float(bias[i]) : 0;
    y[r * C + i] = from_float<T>((to_float(row[i]) - mu) * scale * to_float(weight[i]) + shift);
  }
  mean[r] = mu;
  rstd[r] = scale;
}

extern "C" void layernorm_forward_naive(int64_t dtype, const void* x, const void* weight, const void* bias, void* y,
                                        float* mean, float* rstd, int64_t rows, int64_t C, float eps,
                                        cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    layernorm_forward_naive_kernel<T><<<ceil_div(rows, 128), 128, 0, stream>>>(
        (const T*)x, (const T*)weight, (const T*)bias, (T*)y, mean, rstd, rows, C, eps);
  });
}
