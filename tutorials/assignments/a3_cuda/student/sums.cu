// Chapter 2: sums[r] = the sum of row r of x (rows, columns). What one thread knows another must learn, through shared
// memory and barriers, or from register to register within a warp.
#include "../given/todo.cuh"

// 2.1  A block of 128 threads for every row. Each thread adds up its share of the row; then the 128 sums meet in shared
// memory, half as many in every round. Between what one thread writes and another reads there must be a barrier, and
// every thread of the block must come to it.
__global__ void row_sums_shared_kernel(const float* x, float* sums, int columns) {
  // BEGIN SOLUTION 2.1
  __shared__ float partial[128];
  const float* row = x + blockIdx.x * columns;
  float sum = 0;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += row[i];
  partial[threadIdx.x] = sum;
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
  // END SOLUTION
}

extern "C" void row_sums_shared(const float* x, float* sums, int rows, int columns) {
  row_sums_shared_kernel<<<rows, 128>>>(x, sums, columns);
}

// 2.2  A warp for every row, four warps a block, and neither shared memory nor a barrier: the 32 lanes exchange their
// sums with __shfl_xor_sync or __shfl_down_sync. All the lanes that the mask names must take part, those too that found
// nothing in a short row.
__global__ void row_sums_warp_kernel(const float* x, float* sums, int rows, int columns) {
  // BEGIN SOLUTION 2.2
  int lane = threadIdx.x % 32, r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (r >= rows) return;  // the whole warp
  float sum = 0;
  for (int i = lane; i < columns; i += 32) sum += x[r * columns + i];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffff, sum, distance);
  if (lane == 0) sums[r] = sum;
  // END SOLUTION
}

extern "C" void row_sums_warp(const float* x, float* sums, int rows, int columns) {
  row_sums_warp_kernel<<<(rows + 3) / 4, 128>>>(x, sums, rows, columns);
}
