// The end of one branch and the start of the next, fused: h = x + residual, y = layernorm(h).
//
// Rung 3 of layernorm forward with two more streams: the row of h is normalised while it is still in registers. Apart,
// the addition would write h and the norm read it again. What is normalised is h as it is stored, rounded to 16 bits
// where that is its type, because backward sees no other. Backward is rung 3 of layernorm backward with the gradient
// that comes along the residual stream added to dx.
// moved: forward 16 bytes (instead of 20) and 8 FLOPs a number (float32), backward 16 (instead of 24) and 16 FLOPs;
//     half of the bytes in 16 bits; forward up to 122 registers, backward 128
// counted: forward, 64 rows, C 768, float32: 43,136 sectors of global memory, no shared
// counted: backward, 64 rows, C 768, float32: 41,152 sectors of global memory, 3,792 accesses to shared, 0 turns lost
// measured: not yet run on a GPU
#include "../layernorm/partials.cuh"
#include "../layernorm/row.cuh"

template <class T, int N>
__global__ void __launch_bounds__(MAX_THREADS, 1)
    residual_layernorm_forward_kernel(const T* __restrict__ x, const T* __restrict__ residual,
                                      const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ h,
                                      T* __restrict__ y, float* mean, float* rstd, int64_t rows, int64_t C, float eps) {
  using P = Pack<T, N>;
  constexpr int HELD = FORWARD_HELD<N>;
  __shared__ float slots[2][1][32];
  int64_t r = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (r >= rows) return;  // only where a row is one warp's, and then there is no barrier to miss
  const int packs = C / N;

  float sum = 0;
  Row<T, N, HELD> row(h + r * C, packs, [&](int i) {
    P v = ((const P*)(x + r * C))[i], other = ((const P*)(residual + r * C))[i];
    for (int k = 0; k < N; k++) {
      v.set(k, v[k] + other[k]);
      sum += v[k];  // h as it is stored, rounded
    }
    return ((P*)(h + r * C))[i] = v;
  });
  float mu = block_sum(sum, slots[0]) / C;

  float squares = 0;
  each_pack<HELD>(packs, [&](int i, int held) {
    P v = row(i, held);
    for (int k = 0; k < N; k++) squares += (v[k] - mu) * (v[k] - mu);
  });
  float scale = 1 / sqrtf(block_sum(squares, slots[1]) / C + eps);

  each_pack<HELD>(packs, [&](int i, int held) {
    P v = row(i, held), w = ((const P*)weight)[i], b = {};
    if (bias) b = ((const P*)bias)[i];
    for (int k = 0; k < N; k++) v.set(k, (v[k] - mu) * scale * w[k] + b[k]);
    ((P*)(y + r * C))[i] = v;
  });
  if (threadIdx.x == 0) {
    mean[r] = mu;
    rstd[r] = scale;
  }
}

extern "C" void residual_layernorm_forward(int64_t dtype, const void* x, const void* residual, const void* weight,
                                           const void* bias, void* h, void* y, float* mean, float* rstd, int64_t rows,
                                           int64_t C, float eps, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    with_width<T>(aligned(x, residual, weight, bias, h, y, C * sizeof(T)), [&](auto width) {
      constexpr int N = decltype(width)::value;
      dim3 block = forward_block<N>(C);
      residual_layernorm_forward_kernel<T, N><<<ceil_div(rows, block.y), block, 0, stream>>>(
          (const T*)x, (const T*)residual, (const T*)weight, (const T*)bias, (T*)h, (T*)y, mean, rstd, rows, C, eps);
    });
  });
}

// dx may be dh.
extern "C" void residual_layernorm_backward(int64_t dtype, const void* dh, const void* dy, const void* h,
                                            const void* weight, const float* mean, const float* rstd, void* dx,
                                            void* dweight, void* dbias, int64_t rows, int64_t C, int64_t accumulate,
                                            cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    layernorm_backward_partials<decltype(number), true>(dh, dy, h, weight, mean, rstd, dx, dweight, dbias, rows, C,
                                                        accumulate, stream);
  });
}
