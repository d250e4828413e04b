// The softmax of the stored scores by warps instead of threads, reading each row twice instead of three times.
//
// A row is read by 32 neighbouring lanes, 128 bytes at a time, where before each thread walked along a row of its own.
// And maximum and sum need one pass only (Milakov, Gimelshein 2018, arXiv:1805.02867): a number above the maximum so
// far makes the sum too large by exp(m_old - m_new), so it is scaled down by that. Two lanes, or two halves of a row,
// merge by the same rule, which is what fused attention will be made of:
//
//   (m1, l1) + (m2, l2) = (m, l1 exp(m1 - m) + l2 exp(m2 - m)),  m = max(m1, m2)
//
// Five shuffles merge 32 lanes: with the lane 16 away, 8, 4, 2, 1 (^ is exclusive or).
//
//   lane   0   1   2   3   4   5   6   7 ...     ^4: lane 0 gets 0+4, lane 1 gets 1+5 ... and lane 4 gets 4+0
//          '---'   '---'   '---'   '---'         ^2: 0+4 + 2+6 ...     ^1: all
//
// moved: as before, but a read of the scores less, and in whole lines. The scores and values kernels are unchanged.
// counted: 1 causal head, T 256, D 64: 2,527,232 sectors of global memory, no shared
// measured: not yet run on a GPU
#include "../scratch.cuh"
#include "stored_scores.cuh"

constexpr int WARPS = 8;  // a block

// p_ij = exp(s_ij - m_i) / l_i: a warp per row.
template <class T>
__global__ void softmax_by_warps(AttentionForward<T> a, float* p) {
  const AttentionShape& shape = a.shape;
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32;  // head * Tq + i: the same in a warp
  if (row >= shape.B * shape.H * shape.Tq) return;
  const int64_t keys = shape.visible_keys(row % shape.Tq);
  p += row * shape.Tk;

  float m = LOWEST, l = 0;  // of the scores this lane has seen
  for (int64_t j = lane; j < keys; j += 32) {
    const float s = p[j], m_new = fmaxf(m, s);
    l = l * expf(m - m_new) + expf(s - m_new);
    m = m_new;
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    const float m_other = __shfl_xor_sync(0xffffffff, m, distance);
    const float l_other = __shfl_xor_sync(0xffffffff, l, distance);
    const float m_new = fmaxf(m, m_other);
    l = l * expf(m - m_new) + l_other * expf(m_other - m_new);
    m = m_new;
  }
  const float norm = l == 0 ? 0 : 1 / l;
  for (int64_t j = lane; j < keys; j += 32) p[j] = expf(p[j] - m) * norm;
  if (lane == 0) a.lse[row] = m + logf(l);
}

extern "C" void attention_forward_online_softmax(int64_t dtype, const void* q, int64_t q_batch, int64_t q_head,
                                                 int64_t q_row, const void* k, int64_t k_batch, int64_t k_head,
                                                 int64_t k_row, const void* v, int64_t v_batch, int64_t v_head,
                                                 int64_t v_row, void* out, int64_t out_batch, int64_t out_head,
                                                 int64_t out_row, float* lse, int64_t B, int64_t H, int64_t Hkv,
                                                 int64_t Tq, int64_t Tk, int64_t D, int64_t causal, float scale,
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
    softmax_by_warps<T><<<ceil_div(rows, WARPS), 32 * WARPS, 0, stream>>>(a, p.data);
    add_values<T><<<ceil_div(rows * D, 256), 256, 0, stream>>>(a, p.data);
  });
}
