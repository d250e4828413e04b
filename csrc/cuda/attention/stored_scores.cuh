// Two of the three kernels of attention with stored scores: before the softmax and after it. A number of scores or
// probabilities is a (B, H, Tq, Tk) array p in global memory, of which query i uses the first visible_keys(i).
#pragma once
#include "../launch.cuh"
#include "forward.cuh"

// p_ij = scale q_i . k_j: a thread per score.
template <class T>
__global__ void compute_scores(AttentionForward<T> a, float* p) {
  const AttentionShape& shape = a.shape;
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;  // (head * Tq + i) * Tk + j
  const int64_t row = index / shape.Tk, j = index % shape.Tk, head = row / shape.Tq, i = row % shape.Tq;
  if (head >= shape.B * shape.H || j >= shape.visible_keys(i)) return;
  const int64_t b = head / shape.H, h = head % shape.H;
  const T *q = a.q.row(b, h, i), *k = a.k.row(b, h / shape.group(), j);
  float s = 0;
  for (int64_t d = 0; d < shape.D; d++) s += to_float(q[d]) * to_float(k[d]);
  p[index] = shape.scale * s;
}

// out_i = sum_j p_ij v_j: a thread per number of the output.
template <class T>
__global__ void add_values(AttentionForward<T> a, const float* p) {
  const AttentionShape& shape = a.shape;
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;  // (head * Tq + i) * D + d
  const int64_t row = index / shape.D, d = index % shape.D, head = row / shape.Tq, i = row % shape.Tq;
  if (head >= shape.B * shape.H) return;
  const int64_t b = head / shape.H, h = head % shape.H, keys = shape.visible_keys(i);
  float o = 0;
  for (int64_t j = 0; j < keys; j++) o += p[row * shape.Tk + j] * to_float(a.v.row(b, h / shape.group(), j)[d]);
  a.out.row(b, h, i)[d] = from_float<T>(o);
}
