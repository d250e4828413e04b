// One pass over the rows for dx, dweight and dbias: the kernel of layernorm's last backward rung, and, with `dh`, of
// residual_layernorm.
//
// A block stays (it is "persistent"): it takes the rows b, b + blocks, b + 2 blocks ..., and each of its threads always
// the same columns. So the sums over rows live in the thread's registers, 16 columns of dweight and of dbias, until the
// block has seen all of its rows; then it writes them down once:
//
//                     columns of thread 0   of thread 1   ...
//   row b                   x  dy              x  dy          -> dx of the row, after two sums over the row
//   row b + blocks          x  dy              x  dy          -> dx
//   ...                       |                  |
//   partials[b]         dweight dbias      dweight dbias      -> (2, C) float32; sum_columns adds up the blocks'
//
// Of rows longer than 16 * MAX_THREADS the sums beyond that are kept in partials[b], where one thread touches each.
#pragma once
#include "../scratch.cuh"
#include "columns.cuh"
#include "row.cuh"

// RESIDUAL: there is a dh, which is added to dx, and may lie where dx does.
template <class T, int N, bool RESIDUAL>
__global__ void __launch_bounds__(MAX_THREADS, 1)
    layernorm_backward_partials_kernel(const T* dh, const T* __restrict__ dy, const T* __restrict__ x,
                                       const T* __restrict__ weight, const float* mean, const float* rstd, T* dx,
                                       float* partials, int64_t rows, int64_t C) {
  using P = Pack<T, N>;
  constexpr int HELD = BACKWARD_HELD<N>;
  __shared__ float slots[2][2][32];
  const int packs = C / N;
  float* block_dweight = partials + blockIdx.x * 2 * C;
  float* block_dbias = block_dweight + C;
  float dweight[HELD][N] = {}, dbias[HELD][N] = {};
  each_pack<HELD>(packs, [&](int i, int h) {
    for (int k = 0; k < N && h < 0; k++) block_dweight[i * N + k] = block_dbias[i * N + k] = 0;
  });

  int turn = 0;  // two sets of slots: the barrier of the next row lies between two uses of the same
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x, turn ^= 1) {
    const float mu = mean[r], scale = rstd[r];
    Row<T, N, HELD> x_row(x + r * C, packs), dy_row(dy + r * C, packs);
    Row<T, N, HELD> dh_row(dh + r * C, RESIDUAL ? packs : 0);

    float sums[2] = {};  // of dxhat and of dxhat * xhat
    each_pack<HELD>(packs, [&](int i, int h) {
      P v = x_row(i, h), d = dy_row(i, h), w = ((const P*)weight)[i];
      for (int k = 0; k < N; k++) {
        float xhat = (v[k] - mu) * scale, dxhat = d[k] * w[k];
        sums[0] += dxhat;
        sums[1] += dxhat * xhat;
      }
    });
    block_sums(sums, slots[turn]);
    const float mean_dxhat = sums[0] / C, mean_dxhat_xhat = sums[1] / C;

    // dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) (+ dh), and the row's share of dweight and dbias
    each_pack<HELD>(packs, [&](int i, int h) {
      P v = x_row(i, h), d = dy_row(i, h), w = ((const P*)weight)[i], along = {};
      if (RESIDUAL) along = dh_row(i, h);
      float* to_dweight = h >= 0 ? dweight[h] : block_dweight + i * N;
      float* to_dbias = h >= 0 ? dbias[h] : block_dbias + i * N;
      for (int k = 0; k < N; k++) {
        float xhat = (v[k] - mu) * scale, dxhat = d[k] * w[k];
        to_dweight[k] += d[k] * xhat;
        to_dbias[k] += d[k];
        v.set(k, scale * (dxhat - mean_dxhat - xhat * mean_dxhat_xhat) + along[k]);
      }
      ((P*)(dx + r * C))[i] = v;
    });
  }

  each_pack<HELD>(packs, [&](int i, int h) {
    for (int k = 0; k < N && h >= 0; k++) {
      block_dweight[i * N + k] = dweight[h][k];
      block_dbias[i * N + k] = dbias[h][k];
    }
  });
}

template <class T, bool RESIDUAL>
void layernorm_backward_partials(const void* dh, const void* dy, const void* x, const void* weight, const float* mean,
                                 const float* rstd, void* dx, void* dweight, void* dbias, int64_t rows, int64_t C,
                                 bool accumulate, cudaStream_t stream) {
  const int64_t blocks = partial_blocks(rows);
  Scratch<float> partials(blocks * 2 * C, stream);
  if (!partials.data) return;
  with_width<T>(aligned(dh, dy, x, weight, dx, C * sizeof(T)), [&](auto width) {
    constexpr int N = decltype(width)::value;
    layernorm_backward_partials_kernel<T, N, RESIDUAL><<<blocks, threads_for(C / N, BACKWARD_HELD<N>), 0, stream>>>(
        (const T*)dh, (const T*)dy, (const T*)x, (const T*)weight, mean, rstd, (T*)dx, partials.data, rows, C);
  });
  sum_columns<T>(partials.data, blocks, 2 * C, C, accumulate, dweight, stream);
  if (dbias) sum_columns<T>(partials.data + C, blocks, 2 * C, C, accumulate, dbias, stream);
}
