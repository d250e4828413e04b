// Attention by its definition, in three kernels: all scores, the softmax of each row of them, the weighted sum of the
// values. Between the kernels the scores lie in global memory, (B, H, Tq, Tk) floats of it: with T = 4096 and 16 heads
// that is 1 GiB, written twice and read four times, and each score is one of only 4 D FLOPs' worth of work.
//
//   scores    a thread per score. Neighbouring threads read neighbouring keys, whose rows are far apart: every load
//             of the warp touches 32 sectors of memory to use 4 bytes of each.
//   softmax   a thread per row, three passes; far apart again.
//   values    a thread per number of the output: neighbouring threads read neighbouring numbers, as it should be.
//
// moved: 4 Tq Tk (2 D + 6) bytes a head: k and v once for each query, and a score written twice and read four times; q
//     and p are the same for a whole warp. No reuse but what the caches find. 4 Tq Tk D FLOPs (causal: half)
// counted: 1 causal head, T 256, D 64: 2,645,920 sectors of global memory, no shared
// measured: not yet run on a GPU
#include "../scratch.cuh"
#include "stored_scores.cuh"

// p_ij = exp(s_ij - m_i) / l_i: a thread per row.
template <class T>
__global__ void softmax_by_threads(AttentionForward<T> a, float* p) {
  const AttentionShape& shape = a.shape;
  const int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;  // head * Tq + i
  if (row >= shape.B * shape.H * shape.Tq) return;
  const int64_t keys = shape.visible_keys(row % shape.Tq);
  p += row * shape.Tk;

  float m = LOWEST, l = 0;
  for (int64_t j = 0; j < keys; j++) m = fmaxf(m, p[j]);
  for (int64_t j = 0; j < keys; j++) l += expf(p[j] - m);
  const float norm = l == 0 ? 0 : 1 / l;
  for (int64_t j = 0; j < keys; j++) p[j] = expf(p[j] - m) * norm;
  a.lse[row] = m + logf(l);  // without a key: l = 0, lse = -inf
}

extern "C" void attention_forward_naive(int64_t dtype, const void* q, int64_t q_batch, int64_t q_head, int64_t q_row,
                                        const void* k, int64_t k_batch, int64_t k_head, int64_t k_row, const void* v,
                                        int64_t v_batch, int64_t v_head, int64_t v_row, void* out, int64_t out_batch,
                                        int64_t out_head, int64_t out_row, float* lse, int64_t B, int64_t H,
                                        int64_t Hkv, int64_t Tq, int64_t Tk, int64_t D, int64_t causal, float scale,
                                        cudaStream_t stream) {
  const int64_t rows = B * H * Tq;
  Scratch<float> p(rows * Tk, stream);
  if (!p.data) return;
  const AttentionForward<void> given = {{q, q_batch, q_head, q_row},
                                        {k, k_batch, k_head, k_row},
                                        {v, v_batch, v_head, v_row},
                                        {out, out_batch, out_head, out_row},
                                        lse,
                                        {B, H, Hkv, Tq, Tk, D, causal != 0, scale}};
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    const auto a = typed<T>(given);
    compute_scores<T><<<ceil_div(rows * Tk, 256), 256, 0, stream>>>(a, p.data);
    softmax_by_threads<T><<<ceil_div(rows, 256), 256, 0, stream>>>(a, p.data);
    add_values<T><<<ceil_div(rows * D, 256), 256, 0, stream>>>(a, p.data);
  });
}
