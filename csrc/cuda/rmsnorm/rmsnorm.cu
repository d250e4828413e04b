// layernorm without the mean: see layernorm/ for the ladder that leads here, and its row.cuh and partials.cuh for how a
// row is shared out and how the sums over rows are kept in registers.
// moved: forward 8 bytes and 4 FLOPs a number (float32), backward 12 bytes and 11 FLOPs; half of the bytes in 16 bits;
//     forward up to 78 registers, backward 117
// counted: forward, 64 rows, C 768, float32: 18,496 sectors of global memory, no shared
// counted: backward, 64 rows, C 768, float32: 32,864 sectors of global memory, 1,896 accesses to shared, 0 turns lost
// measured: not yet run on a GPU
#include "../layernorm/columns.cuh"
#include "../layernorm/row.cuh"
#include "../scratch.cuh"

template <class T, int N>
__global__ void __launch_bounds__(MAX_THREADS, 1)
    rmsnorm_forward_kernel(const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ y, float* rstd,
                           int64_t rows, int64_t C, float eps) {
  using P = Pack<T, N>;
  constexpr int HELD = FORWARD_HELD<N>;
  __shared__ float slots[1][32];
  int64_t r = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (r >= rows) return;  // only where a row is one warp's, and then there is no barrier to miss
  const int packs = C / N;
  Row<T, N, HELD> row(x + r * C, packs);

  float squares = 0;
  each_pack<HELD>(packs, [&](int i, int h) {
    P v = row(i, h);
    for (int k = 0; k < N; k++) squares += v[k] * v[k];
  });
  float scale = 1 / sqrtf(block_sum(squares, slots) / C + eps);

  each_pack<HELD>(packs, [&](int i, int h) {
    P v = row(i, h), w = ((const P*)weight)[i];
    for (int k = 0; k < N; k++) v.set(k, v[k] * scale * w[k]);
    ((P*)(y + r * C))[i] = v;
  });
  if (threadIdx.x == 0) rstd[r] = scale;
}

template <class T, int N>
__global__ void __launch_bounds__(MAX_THREADS, 1)
    rmsnorm_backward_kernel(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight,
                            const float* rstd, T* __restrict__ dx, float* partials, int64_t rows, int64_t C) {
  using P = Pack<T, N>;
  constexpr int HELD = BACKWARD_HELD<N>;
  __shared__ float slots[2][1][32];
  const int packs = C / N;
  float* block_dweight = partials + blockIdx.x * C;
  float dweight[HELD][N] = {};
  each_pack<HELD>(packs, [&](int i, int h) {
    for (int k = 0; k < N && h < 0; k++) block_dweight[i * N + k] = 0;
  });

  int turn = 0;  // two sets of slots: the barrier of the next row lies between two uses of the same
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x, turn ^= 1) {
    const float scale = rstd[r];
    Row<T, N, HELD> x_row(x + r * C, packs), dy_row(dy + r * C, packs);

    float sum = 0;
    each_pack<HELD>(packs, [&](int i, int h) {
      P v = x_row(i, h), d = dy_row(i, h), w = ((const P*)weight)[i];
      for (int k = 0; k < N; k++) sum += d[k] * w[k] * (v[k] * scale);
    });
    const float mean_dxhat_xhat = block_sum(sum, slots[turn]) / C;

    // dx = rstd * (dxhat - xhat * mean(dxhat * xhat)), with xhat = x * rstd and dxhat = dy * weight
    each_pack<HELD>(packs, [&](int i, int h) {
      P v = x_row(i, h), d = dy_row(i, h), w = ((const P*)weight)[i];
      float* to_dweight = h >= 0 ? dweight[h] : block_dweight + i * N;
      for (int k = 0; k < N; k++) {
        float xhat = v[k] * scale;
        to_dweight[k] += d[k] * xhat;
        v.set(k, scale * (d[k] * w[k] - xhat * mean_dxhat_xhat));
      }
      ((P*)(dx + r * C))[i] = v;
    });
  }

  each_pack<HELD>(packs, [&](int i, int h) {
    for (int k = 0; k < N && h >= 0; k++) block_dweight[i * N + k] = dweight[h][k];
  });
}

extern "C" void rmsnorm_forward(int64_t dtype, const void* x, const void* weight, void* y, float* rstd, int64_t rows,
                                int64_t C, float eps, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    with_width<T>(aligned(x, weight, y, C * sizeof(T)), [&](auto width) {
      constexpr int N = decltype(width)::value;
      dim3 block = forward_block<N>(C);
      rmsnorm_forward_kernel<T, N>
          <<<ceil_div(rows, block.y), block, 0, stream>>>((const T*)x, (const T*)weight, (T*)y, rstd, rows, C, eps);
    });
  });
}

extern "C" void rmsnorm_backward(int64_t dtype, const void* dy, const void* x, const void* weight, const float* rstd,
                                 void* dx, void* dweight, int64_t rows, int64_t C, int64_t accumulate,
                                 cudaStream_t stream) {
  const int64_t blocks = partial_blocks(rows);
  Scratch<float> partials(blocks * C, stream);
  if (!partials.data) return;
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    with_width<T>(aligned(dy, x, weight, dx, C * sizeof(T)), [&](auto width) {
      constexpr int N = decltype(width)::value;
      rmsnorm_backward_kernel<T, N><<<blocks, threads_for(C / N, BACKWARD_HELD<N>), 0, stream>>>(
          (const T*)dy, (const T*)x, (const T*)weight, rstd, (T*)dx, partials.data, rows, C);
    });
    sum_columns<T>(partials.data, blocks, C, C, accumulate, dweight, stream);
  });
}
