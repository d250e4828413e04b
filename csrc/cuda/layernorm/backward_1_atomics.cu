// layernorm backward, rung 1: one warp a row, and atomic additions for what all rows share.
//
// With xhat = (x - mean) * rstd and dxhat = dy * weight:
//     dx      = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))      two sums over the row, as in forward
//     dweight = sum over rows of dy * xhat,   dbias = sum over rows of dy     a sum over all rows for each column
// Every row adds to the same 2 C numbers. atomicAdd makes that correct, but the additions to one address queue up, and
// come in any order: the rounding, and so the result, is another in every run.
// moved: 12 bytes and 18 FLOPs a number (float32), and 2 atomic additions; 32 registers
// counted: 64 rows, C 768, float32: 55,808 sectors of global memory, 3,024 accesses to shared, 0 turns lost
// takes: float32, bfloat16, float16; not deterministic
// measured: not yet run on a GPU
#include "../reduce.cuh"
#include "../scratch.cuh"
#include "columns.cuh"

constexpr int WARPS = 4;  // a block

template <class T>
__global__ void layernorm_backward_atomics_kernel(const T* dy, const T* x, const T* weight, const float* mean,
                                                  const float* rstd, T* dx, float* dweight, float* dbias, int64_t rows,
                                                  int64_t C) {
  int lane = threadIdx.x % 32;
  int64_t r = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32;
  if (r >= rows) return;
  const T *x_row = x + r * C, *dy_row = dy + r * C;
  float mu = mean[r], scale = rstd[r];

  float sum_dxhat = 0, sum_dxhat_xhat = 0;
  for (int64_t i = lane; i < C; i += 32) {
    float xhat = (to_float(x_row[i]) - mu) * scale, dxhat = to_float(dy_row[i]) * to_float(weight[i]);
    sum_dxhat += dxhat;
    sum_dxhat_xhat += dxhat * xhat;
  }
  float mean_dxhat = warp_sum(sum_dxhat) / C, mean_dxhat_xhat = warp_sum(sum_dxhat_xhat) / C;

  for (int64_t i = lane; i < C; i += 32) {
    float d = to_float(dy_row[i]), xhat = (to_float(x_row[i]) - mu) * scale, dxhat = d * to_float(weight[i]);
    dx[r * C + i] = from_float<T>(scale * (dxhat - mean_dxhat - xhat * mean_dxhat_xhat));
    atomicAdd(&dweight[i], d * xhat);
    atomicAdd(&dbias[i], d);
  }
}

extern "C" void layernorm_backward_atomics(int64_t dtype, const void* dy, const void* x, const void* weight,
                                           const float* mean, const float* rstd, void* dx, void* dweight, void* dbias,
                                           int64_t rows, int64_t C, int64_t accumulate, cudaStream_t stream) {
  Scratch<float> sums(2 * C, stream);  // dweight, dbias
  if (!sums.data) return;
  cudaMemsetAsync(sums.data, 0, 2 * C * sizeof(float), stream);
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    layernorm_backward_atomics_kernel<T><<<ceil_div(rows, WARPS), 32 * WARPS, 0, stream>>>(
        (const T*)dy, (const T*)x, (const T*)weight, mean, rstd, (T*)dx, sums.data, sums.data + C, rows, C);
    sum_columns<T>(sums.data, 1, 0, C, accumulate, dweight, stream);
    if (dbias) sum_columns<T>(sums.data + C, 1, 0, C, accumulate, dbias, stream);
  });
}
