// y = x^T for square matrices, a thread a number. Right, and slow: neighbouring threads read neighbouring numbers of
// a row of x, but what they write lies a whole row of y apart.
__global__ void transpose(const float* x, float* y, int n) {
  int row = blockIdx.y * blockDim.y + threadIdx.y;
  int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= n || column >= n) return;
  y[column * n + row] = x[row * n + column];
}

extern "C" void transposed(const float* x, float* y, int n, cudaStream_t stream) {
  dim3 block(32, 8);
  dim3 grid((n + block.x - 1) / block.x, (n + block.y - 1) / block.y);
  transpose<<<grid, block, 0, stream>>>(x, y, n);
}
