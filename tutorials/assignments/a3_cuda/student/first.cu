// Chapter 1: two kernels that move numbers and hardly compute. A kernel is written for one thread; thousands run it, and
// each finds its share of the work by asking which thread of which block it is.
#include "../given/todo.cuh"

// 1.1  y = a + b, over n numbers. There are 4 blocks of 128 threads, however many numbers there are: 1, or a million.
// Each thread takes every 512th, and neighbouring threads take neighbouring numbers.
__global__ void residual_add_kernel(const float* a, const float* b, float* y, int n) {
  // BEGIN SOLUTION 1.1
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = a[i] + b[i];
  // END SOLUTION
}

extern "C" void residual_add(const float* a, const float* b, float* y, int n) {
  residual_add_kernel<<<4, 128>>>(a, b, y, n);
}

constexpr int TILE = 32;

// 1.2  y (columns, rows) is x (rows, columns) transposed. A block has a tile of 32 x 32 numbers and 32 x 8 threads; the
// tiles at the edges are smaller. Who reads along rows writes along columns, and one of the two is 8 times the traffic:
// so a tile goes into shared memory on its way, where the order costs nothing (if no two lanes meet at a bank).
__global__ void transpose_kernel(const float* x, float* y, int rows, int columns) {
  // BEGIN SOLUTION 1.2
  __shared__ float tile[TILE][TILE + 1];  // a column's numbers lie 33 words apart: in 32 different banks
  int r0 = blockIdx.y * TILE, c0 = blockIdx.x * TILE;
  for (int i = threadIdx.y; i < TILE; i += blockDim.y) {
    int r = r0 + i, c = c0 + threadIdx.x;
    if (r < rows && c < columns) tile[i][threadIdx.x] = x[r * columns + c];
  }
  __syncthreads();
  for (int i = threadIdx.y; i < TILE; i += blockDim.y) {
    int r = r0 + threadIdx.x, c = c0 + i;
    if (r < rows && c < columns) y[c * rows + r] = tile[threadIdx.x][i];
  }
  // END SOLUTION
}

extern "C" void transpose(const float* x, float* y, int rows, int columns) {
  dim3 blocks((columns + TILE - 1) / TILE, (rows + TILE - 1) / TILE);
  transpose_kernel<<<blocks, dim3(TILE, 8)>>>(x, y, rows, columns);
}
