// The gradients of attention, one warp a row: slow, and plain enough to check the others against.
// Three kernels, one for each kind of row. A result is written by the one warp that owns it, which reads what it needs
// from everybody: so no two warps add to the same number, and no result depends on their order. The price is that the
// probabilities are computed twice more, once for the queries and once for the keys:
//   delta   warp of query i:  delta_i = dout_i . out_i
//   dq      warp of query i, over its keys j:      p = exp(s - lse),  dq_i += scale ds k_j
//   dk, dv  warp of key j, over the queries i that see it, in every head of the group:
//                                                  p again,           dk_j += scale ds q_i,  dv_j += p dout_i
//
// takes: float32, bfloat16, float16; D up to 256
// moved: every pair reads two rows of D numbers in each kernel, 16 D bytes of float32, mostly out of the caches, for 14 D
//     FLOPs: 3 products for dq and 4 for dk and dv, which makes 7 where 5 would do
// counted: 1 causal head, T 256, D 64: 1,137,664 sectors of global memory, no shared
// measured: not yet run on a GPU
#include "../scratch.cuh"
#include "backward.cuh"

constexpr int WARPS = 8;  // a block: 8 warps of 32 lanes, 8 rows

// The row of this warp, of all the rows of (B, heads, T). False for warps beyond the last row.
struct Row {
  int64_t b, h, t;
};
__device__ bool find_row(int64_t B, int64_t heads, int64_t T, Row& row) {
  const int64_t n = int64_t(blockIdx.x) * WARPS + threadIdx.y;
  row = {n / (heads * T), n / T % heads, n % T};
  return row.b < B;
}

// A warp holds a row in registers: lane l has the numbers l, 32 + l, 64 + l, ..., N of them, and zeros from D on.
template <class T, int N>
__device__ void load_row(const T* row, int64_t D, float (&x)[N]) {
#pragma unroll
  for (int n = 0; n < N; n++) {
    const int d = 32 * n + threadIdx.x;
    x[n] = d < D ? to_float(row[d]) : 0.0f;
  }
}

template <class T, int N>
__device__ void store_row(T* row, int64_t D, float scale, const float (&x)[N]) {
#pragma unroll
  for (int n = 0; n < N; n++) {
    const int d = 32 * n + threadIdx.x;
    if (d < D) row[d] = from_float<T>(scale * x[n]);
  }
}

template <int N>
__device__ float dot(const float (&a)[N], const float (&b)[N]) {
  float sum = 0;
#pragma unroll
  for (int n = 0; n < N; n++) sum += a[n] * b[n];
  return warp_sum(sum);
}

// y += a x
template <int N>
__device__ void add(float (&y)[N], float a, const float (&x)[N]) {
#pragma unroll
  for (int n = 0; n < N; n++) y[n] += a * x[n];
}

template <class T, int N>
__global__ void delta_of_rows(AttentionGradients<T> a, float* delta) {
  Row row;
  if (!find_row(a.shape.B, a.shape.H, a.shape.Tq, row)) return;
  const auto [b, h, i] = row;
  float doi[N], oi[N];
  load_row(a.dout.row(b, h, i), a.shape.D, doi);
  load_row(a.out.row(b, h, i), a.shape.D, oi);
  const float delta_i = dot(doi, oi);  // delta = rowsum(dO * O)
  if (threadIdx.x == 0) delta[a.shape.query(b, h, i)] = delta_i;
}

template <class T, int N>
__global__ void dq_of_rows(AttentionGradients<T> a, const float* delta) {
  const AttentionShape& shape = a.shape;
  Row row;
  if (!find_row(shape.B, shape.H, shape.Tq, row)) return;
  const auto [b, h, i] = row;
  const int64_t hkv = h / shape.group();
  const float lse_i = finite_lse(a.lse[shape.query(b, h, i)]), delta_i = delta[shape.query(b, h, i)];
  float qi[N], doi[N], dqi[N] = {};
  load_row(a.q.row(b, h, i), shape.D, qi);
  load_row(a.dout.row(b, h, i), shape.D, doi);
  for (int64_t j = 0; j < shape.visible_keys(i); j++) {
    float kj[N], vj[N];
    load_row(a.k.row(b, hkv, j), shape.D, kj);
    load_row(a.v.row(b, hkv, j), shape.D, vj);
    const float p = expf(shape.scale * dot(qi, kj) - lse_i);  // P = exp(S - lse)
    const float ds = p * (dot(doi, vj) - delta_i);            // dS = P * (dP - delta), dP = dO V^T
    add(dqi, ds, kj);                                         // dQ = scale dS K
  }
  store_row(a.dq.row(b, h, i), shape.D, shape.scale, dqi);
}

template <class T, int N>
__global__ void dk_dv_of_rows(AttentionGradients<T> a, const float* delta) {
  const AttentionShape& shape = a.shape;
  Row row;
  if (!find_row(shape.B, shape.Hkv, shape.Tk, row)) return;
  const auto [b, hkv, j] = row;
  float kj[N], vj[N], dkj[N] = {}, dvj[N] = {};
  load_row(a.k.row(b, hkv, j), shape.D, kj);
  load_row(a.v.row(b, hkv, j), shape.D, vj);
  for (int64_t h = hkv * shape.group(); h < (hkv + 1) * shape.group(); h++) {
    for (int64_t i = shape.first_query(j); i < shape.Tq; i++) {
      float qi[N], doi[N];
      load_row(a.q.row(b, h, i), shape.D, qi);
      load_row(a.dout.row(b, h, i), shape.D, doi);
      const float lse_i = finite_lse(a.lse[shape.query(b, h, i)]);
      const float p = expf(shape.scale * dot(qi, kj) - lse_i);            // P = exp(S - lse)
      const float ds = p * (dot(doi, vj) - delta[shape.query(b, h, i)]);  // dS = P * (dP - delta), dP = dO V^T
      add(dvj, p, doi);                                                   // dV = P^T dO
      add(dkj, ds, qi);                                                   // dK = scale dS^T Q
    }
  }
  store_row(a.dk.row(b, hkv, j), shape.D, shape.scale, dkj);
  store_row(a.dv.row(b, hkv, j), shape.D, 1.0f, dvj);
}

template <class T, int N>
static void launch(const AttentionGradients<T>& a, cudaStream_t stream) {
  const int64_t queries = a.shape.B * a.shape.H * a.shape.Tq, keys = a.shape.B * a.shape.Hkv * a.shape.Tk;
  const dim3 block(32, WARPS), of_queries((queries + WARPS - 1) / WARPS), of_keys((keys + WARPS - 1) / WARPS);
  const Scratch<float> delta(queries, stream);
  if (!delta.data) return;
  delta_of_rows<T, N><<<of_queries, block, 0, stream>>>(a, delta.data);
  dq_of_rows<T, N><<<of_queries, block, 0, stream>>>(a, delta.data);
  dk_dv_of_rows<T, N><<<of_keys, block, 0, stream>>>(a, delta.data);
}

extern "C" void attention_backward_rows(int64_t dtype, const void* dout, int64_t dout_batch, int64_t dout_head,
                                        int64_t dout_row, const void* q, int64_t q_batch, int64_t q_head, int64_t q_row,
                                        const void* k, int64_t k_batch, int64_t k_head, int64_t k_row, const void* v,
                                        int64_t v_batch, int64_t v_head, int64_t v_row, const void* out,
                                        int64_t out_batch, int64_t out_head, int64_t out_row, const float* lse,
                                        void* dq, int64_t dq_batch, int64_t dq_head, int64_t dq_row, void* dk,
                                        int64_t dk_batch, int64_t dk_head, int64_t dk_row, void* dv, int64_t dv_batch,
                                        int64_t dv_head, int64_t dv_row, int64_t B, int64_t H, int64_t Hkv, int64_t Tq,
                                        int64_t Tk, int64_t D, int64_t causal, float scale, cudaStream_t stream) {
  const AttentionGradients<void> a = {{B, H, Hkv, Tq, Tk, D, causal != 0, scale},
                                      {dout, dout_batch, dout_head, dout_row},
                                      {q, q_batch, q_head, q_row},
                                      {k, k_batch, k_head, k_row},
                                      {v, v_batch, v_head, v_row},
                                      {out, out_batch, out_head, out_row},
                                      lse,
                                      {dq, dq_batch, dq_head, dq_row},
                                      {dk, dk_batch, dk_head, dk_row},
                                      {dv, dv_batch, dv_head, dv_row}};
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    if (D <= 64) {
      launch<T, 2>(typed<T>(a), stream);
    } else if (D <= 128) {
      launch<T, 4>(typed<T>(a), stream);
    } else {
      launch<T, 8>(typed<T>(a), stream);
    }
  });
}
