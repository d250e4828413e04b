// layernorm forward, rung 3: 16 bytes an access, the row in registers.
//
// Rung 2 asks memory for 4 bytes a thread and then waits. Here a thread issues up to eight loads of 16 bytes (four of
// 16-bit numbers) before it needs the first (row.cuh), which is what it takes to keep the memory busy, and the three
// passes go over registers. A warp holds 1024 numbers; a longer row is shared by the warps of a block, whose sums meet
// in shared memory. weight and bias are the same for all rows and come from the L1 cache.
// moved: 8 bytes and 9 FLOPs a number (float32; 4 bytes in 16 bits); up to 96 registers
// counted: 64 rows, C 768, float32: 24,704 sectors of global memory, no shared
// measured: not yet run on a GPU
#include "row.cuh"

template <class T, int N>
__global__ void __launch_bounds__(MAX_THREADS, 1)
    layernorm_forward_vectorised_kernel(const T* __restrict__ x, const T* __restrict__ weight,
                                        const T* __restrict__ bias, T* __restrict__ y, float* mean, float* rstd,
                                        int64_t rows, int64_t C, float eps) {
  using P = Pack<T, N>;
  constexpr int HELD = FORWARD_HELD<N>;
  __shared__ float slots[2][1][32];
  int64_t r = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (r >= rows) return;  // only where a row is one warp's, and then there is no barrier to miss
  const int packs = C / N;
  Row<T, N, HELD> row(x + r * C, packs);

  float sum = 0;
  each_pack<HELD>(packs, [&](int i, int h) {
    P v = row(i, h);
    for (int k = 0; k < N; k++) sum += v[k];
  });
  float mu = block_sum(sum, slots[0]) / C;

  float squares = 0;
  each_pack<HELD>(packs, [&](int i, int h) {
    P v = row(i, h);
    for (int k = 0; k < N; k++) squares += (v[k] - mu) * (v[k] - mu);
  });
  float scale = 1 / sqrtf(block_sum(squares, slots[1]) / C + eps);

  each_pack<HELD>(packs, [&](int i, int h) {
    P v = row(i, h), w = ((const P*)weight)[i], b = {};
    if (bias) b = ((const P*)bias)[i];
    for (int k = 0; k < N; k++) v.set(k, (v[k] - mu) * scale * w[k] + b[k]);
    ((P*)(y + r * C))[i] = v;
  });
  if (threadIdx.x == 0) {
    mean[r] = mu;
    rstd[r] = scale;
  }
}

extern "C" void layernorm_forward_vectorised(int64_t dtype, const void* x, const void* weight, const void* bias,
                                             void* y, float* mean, float* rstd, int64_t rows, int64_t C, float eps,
                                             cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    with_width<T>(aligned(x, weight, bias, y, C * sizeof(T)), [&](auto width) {
      constexpr int N = decltype(width)::value;
      dim3 block = forward_block<N>(C);
      layernorm_forward_vectorised_kernel<T, N><<<ceil_div(rows, block.y), block, 0, stream>>>(
          (const T*)x, (const T*)weight, (const T*)bias, (T*)y, mean, rstd, rows, C, eps);
    });
  });
}
