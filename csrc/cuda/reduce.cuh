// Sums and maxima over the threads that share a row: the lanes of a warp exchange registers, the warps of a block meet
// in shared memory. Every thread gets the result, and numbers are added up in the same order in every run.
#pragma once
#include <cmath>

constexpr unsigned ALL_LANES = 0xffffffffu;

// Where a running maximum starts that is taken away before the exponential: finite, so that a number of -inf less the
// maximum is -inf and no NaN. A softmax that saw no number, or only -inf, ends with the sum l = 0.
constexpr float LOWEST = -3.402823466e38f;

// Butterfly: after the exchanges over distances 16, 8, 4, 2, 1 every lane holds the sum of all 32.
__device__ inline float warp_sum(float v) {
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(ALL_LANES, v, distance);
  return v;
}

__device__ inline float warp_max(float v) {
  for (int distance = 16; distance > 0; distance /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, distance));
  return v;
}

// K sums at once over blockDim.x threads, a multiple of 32, with one barrier (none where a warp is all there is).
// `slots` is shared memory; it may be written again after the next barrier.
template <int K>
__device__ void block_sums(float (&v)[K], float (&slots)[K][32]) {
  for (float& sum : v) sum = warp_sum(sum);
  if (blockDim.x == 32) return;
  for (int k = 0; k < K; k++) {
    if (threadIdx.x % 32 == 0) slots[k][threadIdx.x / 32] = v[k];
  }
  __syncthreads();
  for (int k = 0; k < K; k++) {
    v[k] = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) v[k] += slots[k][warp];
  }
}

__device__ inline float block_sum(float v, float (&slots)[1][32]) {
  float sums[1] = {v};
  block_sums(sums, slots);
  return sums[0];
}

__device__ inline float block_max(float v, float (&slots)[1][32]) {
  v = warp_max(v);
  if (blockDim.x == 32) return v;
  if (threadIdx.x % 32 == 0) slots[0][threadIdx.x / 32] = v;
  __syncthreads();
  for (int warp = 0; warp < blockDim.x / 32; warp++) v = fmaxf(v, slots[0][warp]);
  return v;
}
