// One kernel, a warp per query, and no score is ever stored: the online softmax of the rung before goes over the keys
// once, and carries the unnormalised output along. A score above the maximum so far makes everything added before too
// large by exp(m_old - m_new):
//
//   s = scale q . k_j;   m_new = max(m, s);   c = exp(m - m_new);   p = exp(s - m_new)
//   l = l c + p;   o = o c + p v_j;   m = m_new                             at the end: out = o / l, lse = m + log(l)
//
// This is what makes attention in O(T) memory possible, and any length, and why lse is enough for the backward pass. It
// is no faster: every query still reads every key and value, and a dot product now waits for five shuffles. What pays
// is reading a key once for many queries, which is the next rung.
//
// The lanes share out a row: lane t holds q, o and reads k, v at d = t, t + 32, t + 64 ...: 32 neighbours, one line.
//
// moved: 4 Tq Tk D bytes a head in 16 bits, 8 in float32, mostly out of the L2 cache (causal: half); 4 Tq Tk D FLOPs
// takes: float32, bfloat16, float16; D up to 256
// counted: 1 causal head, T 256, D 64: 530,688 sectors of global memory, no shared
// measured: not yet run on a GPU
#include "forward.cuh"

constexpr int WARPS = 4;  // a block

// Each lane holds N numbers of a row; D is at most 32 N, and what is beyond D counts as 0.
template <class T, int N>
__global__ void attend(AttentionForward<T> a) {
  const AttentionShape& shape = a.shape;
  const int lane = threadIdx.x % 32, D = shape.D;
  const int64_t row = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32;  // head * Tq + i: the same in a warp
  if (row >= shape.B * shape.H * shape.Tq) return;
  const int64_t head = row / shape.Tq, i = row % shape.Tq, b = head / shape.H, h = head % shape.H;
  const T *qi = a.q.row(b, h, i), *k = a.k.row(b, h / shape.group(), 0), *v = a.v.row(b, h / shape.group(), 0);

  float q[N], o[N], m = LOWEST, l = 0;
  for (int n = 0; n < N; n++) {
    const int d = lane + 32 * n;
    q[n] = d < D ? shape.scale * to_float(qi[d]) : 0;
    o[n] = 0;
  }
  const int64_t keys = shape.visible_keys(i);
  for (int64_t j = 0; j < keys; j++, k += a.k.row_stride, v += a.v.row_stride) {
    float s = 0;
    for (int n = 0; n < N; n++) {
      const int d = lane + 32 * n;
      if (d < D) s += q[n] * to_float(k[d]);
    }
    s = warp_sum(s);  // the same in all lanes, and so are m, l, c and p

    const float m_new = fmaxf(m, s), c = expf(m - m_new), p = expf(s - m_new);
    l = l * c + p;
    m = m_new;
    for (int n = 0; n < N; n++) {
      const int d = lane + 32 * n;
      if (d < D) o[n] = o[n] * c + p * to_float(v[d]);
    }
  }
  const float norm = l == 0 ? 0 : 1 / l;
  T* out = a.out.row(b, h, i);
  for (int n = 0; n < N; n++) {
    const int d = lane + 32 * n;
    if (d < D) out[d] = from_float<T>(o[n] * norm);
  }
  if (lane == 0) a.lse[row] = m + logf(l);
}

extern "C" void attention_forward_fused_rows(int64_t dtype, const void* q, int64_t q_batch, int64_t q_head,
                                             int64_t q_row, const void* k, int64_t k_batch, int64_t k_head,
                                             int64_t k_row, const void* v, int64_t v_batch, int64_t v_head,
                                             int64_t v_row, void* out, int64_t out_batch, int64_t out_head,
                                             int64_t out_row, float* lse, int64_t B, int64_t H, int64_t Hkv, int64_t Tq,
                                             int64_t Tk, int64_t D, int64_t causal, float scale, cudaStream_t stream) {
  const int64_t rows = B * H * Tq, blocks = (rows + WARPS - 1) / WARPS;
  const AttentionForward<void> given = {{q, q_batch, q_head, q_row},
                                        {k, k_batch, k_head, k_row},
                                        {v, v_batch, v_head, v_row},
                                        {out, out_batch, out_head, out_row},
                                        lse,
                                        {B, H, Hkv, Tq, Tk, D, causal != 0, scale}};
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    const auto a = typed<T>(given);
    auto kernel = D <= 64 ? attend<T, 2> : D <= 128 ? attend<T, 4> : attend<T, 8>;  // D is at most 256
    kernel<<<blocks, 32 * WARPS, 0, stream>>>(a);
  });
}
