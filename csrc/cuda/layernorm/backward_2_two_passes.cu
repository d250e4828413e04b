// layernorm backward, rung 2: a kernel that walks along the rows and one that walks down the columns.
//
// Without atomics: the first kernel gives dx, one warp a row. The second gives dweight and dbias: a block owns 32
// columns, each of its 32 warps adds up every 32nd row (a warp reads 32 neighbours: coalesced), and the 32 sums of a
// column meet in shared memory. The order of the additions is fixed, so the result is, too. The price: x and dy are
// read twice, and there are only C / 32 blocks in the second kernel: 24 for C = 768, on a GPU that could run hundreds.
// moved: 20 bytes and 20 FLOPs a number (float32); 32 registers
// counted: 64 rows, C 768, float32: 58,688 sectors of global memory, 3,072 accesses to shared, 0 turns lost
// measured: not yet run on a GPU
#include "../launch.cuh"
#include "../reduce.cuh"

constexpr int WARPS = 4;  // a block of the first kernel

template <class T>
__global__ void layernorm_backward_rows_kernel(const T* dy, const T* x, const T* weight, const float* mean,
                                               const float* rstd, T* dx, int64_t rows, int64_t C) {
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

  // dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))
  for (int64_t i = lane; i < C; i += 32) {
    float xhat = (to_float(x_row[i]) - mu) * scale, dxhat = to_float(dy_row[i]) * to_float(weight[i]);
    dx[r * C + i] = from_float<T>(scale * (dxhat - mean_dxhat - xhat * mean_dxhat_xhat));
  }
}

// dweight = sum over rows of dy * xhat, dbias = sum over rows of dy
template <class T>
__global__ void layernorm_backward_columns_kernel(const T* dy, const T* x, const float* mean, const float* rstd,
                                                  T* dweight, T* dbias, int64_t rows, int64_t C, bool accumulate) {
  __shared__ float tile[2][32][32];  // sums of dy * xhat and of dy, warp by warp
  int lane = threadIdx.x, warp = threadIdx.y;
  int64_t i = int64_t(blockIdx.x) * 32 + lane;
  float sum_weight = 0, sum_bias = 0;
  if (i < C) {
    for (int64_t r = warp; r < rows; r += 32) {
      float d = to_float(dy[r * C + i]);
      sum_weight += d * (to_float(x[r * C + i]) - mean[r]) * rstd[r];
      sum_bias += d;
    }
  }
  tile[0][warp][lane] = sum_weight;
  tile[1][warp][lane] = sum_bias;
  __syncthreads();
  T* result = warp == 0 ? dweight : warp == 1 ? dbias : nullptr;  // one warp adds up each
  if (!result || i >= C) return;
  float sum = accumulate ? to_float(result[i]) : 0;
  for (int w = 0; w < 32; w++) sum += tile[warp][w][lane];
  result[i] = from_float<T>(sum);
}

extern "C" void layernorm_backward_two_passes(int64_t dtype, const void* dy, const void* x, const void* weight,
                                              const float* mean, const float* rstd, void* dx, void* dweight,
                                              void* dbias, int64_t rows, int64_t C, int64_t accumulate,
                                              cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    layernorm_backward_rows_kernel<T><<<ceil_div(rows, WARPS), 32 * WARPS, 0, stream>>>(
        (const T*)dy, (const T*)x, (const T*)weight, mean, rstd, (T*)dx, rows, C);
    layernorm_backward_columns_kernel<T><<<ceil_div(C, 32), dim3(32, 32), 0, stream>>>(
        (const T*)dy, (const T*)x, mean, rstd, (T*)dweight, (T*)dbias, rows, C, accumulate);
  });
}
