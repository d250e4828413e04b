// Chapter 3: layernorm over the rows of x (rows, C), forward and backward. With xhat = (x - mean) * rstd:
//     mean = sum(x) / C,   rstd = 1 / sqrt(sum((x - mean)^2) / C + eps),   y = xhat * weight + bias
// Nearly all its time goes into waiting for memory: what counts is how often a number is fetched. Here you write the
// launches too: how many blocks, how many threads each, and how many bytes of shared memory,
//     kernel<<<blocks, threads, bytes>>>(...)       extern __shared__ float row[];       (any C up to 4096 must fit)
#include "../given/todo.cuh"

// BEGIN SOLUTION 3.1 NO PROMPT
constexpr int THREADS = 128;

// The sum of v over the block, for every thread: within warps by shuffles, then over the warps in shared memory.
__device__ float block_sum(float v) {
  __shared__ float of_warp[THREADS / 32];
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffff, v, distance);
  __syncthreads();  // the sums of the call before have been read
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < THREADS / 32; warp++) sum += of_warp[warp];
  return sum;
}
// END SOLUTION

// 3.1  y (rows, C), mean (rows), rstd (rows). x is read from global memory once.
__global__ void layernorm_forward_kernel(const float* x, const float* weight, const float* bias, float* y, float* mean,
                                         float* rstd, int C, float eps) {
  // BEGIN SOLUTION 3.1
  extern __shared__ float row[];  // (C): a thread reads no numbers in it but its own
  const float* x_row = x + blockIdx.x * C;
  float sum = 0, squares = 0;
  for (int i = threadIdx.x; i < C; i += THREADS) sum += row[i] = x_row[i];
  float mu = block_sum(sum) / C;
  for (int i = threadIdx.x; i < C; i += THREADS) squares += (row[i] - mu) * (row[i] - mu);
  float scale = 1 / sqrtf(block_sum(squares) / C + eps);
  for (int i = threadIdx.x; i < C; i += THREADS) y[blockIdx.x * C + i] = (row[i] - mu) * scale * weight[i] + bias[i];
  if (threadIdx.x == 0) {
    mean[blockIdx.x] = mu;
    rstd[blockIdx.x] = scale;
  }
  // END SOLUTION
}

extern "C" void layernorm_forward(const float* x, const float* weight, const float* bias, float* y, float* mean,
                                  float* rstd, int rows, int C, float eps) {
  // BEGIN SOLUTION 3.1
  layernorm_forward_kernel<<<rows, THREADS, C * sizeof(float)>>>(x, weight, bias, y, mean, rstd, C, eps);
  // END SOLUTION
}

// 3.2  dx (rows, C) = rstd * (dxhat - sum(dxhat) / C - xhat * sum(dxhat * xhat) / C), dxhat = dy * weight.
// x and dy are read from global memory once.
__global__ void layernorm_backward_x_kernel(const float* dy, const float* x, const float* weight, const float* mean,
                                            const float* rstd, float* dx, int C) {
  // BEGIN SOLUTION 3.2
  extern __shared__ float row[];  // (2, C)
  float *xhat = row, *dxhat = row + C;
  const int offset = blockIdx.x * C;
  float mu = mean[blockIdx.x], scale = rstd[blockIdx.x], sum = 0, product = 0;
  for (int i = threadIdx.x; i < C; i += THREADS) {
    xhat[i] = (x[offset + i] - mu) * scale;
    dxhat[i] = dy[offset + i] * weight[i];
    sum += dxhat[i];
    product += dxhat[i] * xhat[i];
  }
  float mean_dxhat = block_sum(sum) / C, mean_product = block_sum(product) / C;
  for (int i = threadIdx.x; i < C; i += THREADS) {
    dx[offset + i] = scale * (dxhat[i] - mean_dxhat - xhat[i] * mean_product);
  }
  // END SOLUTION
}

extern "C" void layernorm_backward_x(const float* dy, const float* x, const float* weight, const float* mean,
                                     const float* rstd, float* dx, int rows, int C) {
  // BEGIN SOLUTION 3.2
  layernorm_backward_x_kernel<<<rows, THREADS, 2 * C * sizeof(float)>>>(dy, x, weight, mean, rstd, dx, C);
  // END SOLUTION
}

// 3.3  dweight (C) = sum over rows of dy * xhat, dbias (C) = sum over rows of dy. All rows add to the same numbers: two
// threads that do so at once lose one addition, and atomicAdd comes in another order every time, so with another result.
// The same arguments must give the same bits: let each block add up some rows, and a second kernel what the blocks
// found. `partials` has room for 2 * parts * C numbers; parts is rows / 16, rounded up.
__global__ void partial_sums_kernel(const float* dy, const float* x, const float* mean, const float* rstd,
                                    float* partials, int rows, int C) {
  // BEGIN SOLUTION 3.3
  int i = blockIdx.x * blockDim.x + threadIdx.x, part = blockIdx.y, last = min(rows, 16 * (part + 1));
  if (i >= C) return;
  float dweight = 0, dbias = 0;
  for (int r = 16 * part; r < last; r++) {
    dweight += dy[r * C + i] * (x[r * C + i] - mean[r]) * rstd[r];
    dbias += dy[r * C + i];
  }
  partials[2 * part * C + i] = dweight;  // (parts, 2, C)
  partials[(2 * part + 1) * C + i] = dbias;
  // END SOLUTION
}

__global__ void sum_partials_kernel(const float* partials, float* dweight, float* dbias, int parts, int C) {
  // BEGIN SOLUTION 3.3
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= C) return;
  float sum_dweight = 0, sum_dbias = 0;
  for (int part = 0; part < parts; part++) {
    sum_dweight += partials[2 * part * C + i];
    sum_dbias += partials[(2 * part + 1) * C + i];
  }
  dweight[i] = sum_dweight;
  dbias[i] = sum_dbias;
  // END SOLUTION
}

extern "C" void layernorm_backward_parameters(const float* dy, const float* x, const float* mean, const float* rstd,
                                              float* dweight, float* dbias, float* partials, int parts, int rows,
                                              int C) {
  // BEGIN SOLUTION 3.3
  int tiles = (C + 63) / 64;
  partial_sums_kernel<<<dim3(tiles, parts), 64>>>(dy, x, mean, rstd, partials, rows, C);
  sum_partials_kernel<<<tiles, 64>>>(partials, dweight, dbias, parts, C);
  // END SOLUTION
}
