// The gradients on the tensor cores, in bfloat16 or half; sums in float32. As in the rung before, a block owns 64 rows
// and walks over tiles of others, once for dq and once for dk and dv. What changed:
//   a product is a row of 16 x 8 x 16 matrix instructions, and a warp owns 16 rows alone: P and dS, which it computes,
//   are the left factors of its own next products. They never leave its registers, and no warp waits for another.
//   tiles lie swizzled in shared memory (swizzle.cuh): ldmatrix reads eight rows without a bank conflict.
//   the next tile is copied by cp.async while this one is multiplied; one barrier a tile.
//   2^x is one instruction, and only tiles that the diagonal or the end crosses are masked.
//
//   dq:       own Q, dO (64 x D)    other K, V           dk, dv:   own K, V    other Q, dO
//               S  = Q K^T     dP  = dO V^T                S^T  = K Q^T     dP^T = V dO^T
//               P  = 2^(S - lse)                           P^T  = 2^(S^T - lse)         dV += P^T dO
//               dS = P * (dP - delta)   dQ += dS K         dS^T = P^T * (dP^T - delta)  dK += dS^T Q
//
//             other: 64 rows as columns          other: D columns
//            +-------------------------+        +----------------+
//       own  | warp 0: 16 rows of S,   |        | dQ of warp 0   |      S, dP: 8 pieces of 16 x 8 numbers each, 4 a lane;
//       64   | dP, then of P, dS       |   ->   | 16 rows        |      P, dS: the same, as 4 left factors of 16 x 16
//       rows | warp 1 ...              |        | warp 1 ...     |      (to_a in backward_mma.cuh)
//            +-------------------------+        +----------------+
//
// Seven products, where one kernel for all three gradients (the next rung) does five: S and dP are computed twice. But
// each gradient has one owner, who adds up in one order: the result is the same, to the bit, in every run.
//
// takes: bfloat16, float16; D up to 128; needs sm_80
// moved: a pair of tiles reads 4 D bytes for each of its others, from the L2 cache: 96 FLOPs a byte for dq, 128 for dk
//     and dv; 14 D FLOPs a pair (6 D for dq)
// shared memory: 48 KB for dq, 49 for dk and dv; for D over 64, with tiles of 32 others instead of 64, 64 and 64.5 KB.
//     Registers: 160 and 168, three blocks a multiprocessor; for D over 64 168, and 240 with two blocks (sm_90)
// counted: 1 causal head, T 256, D 64: 23,520 sectors of global memory, 8,586 accesses to shared, 0 turns lost
// measured: not yet run on a GPU
#include "../scratch.cuh"
#include "backward_keys.cuh"

// Queries are owned: the rows of S, P and dS. A block is one of tile * B H + head.
template <int D, int OTHER, class T>
__global__ __launch_bounds__(THREADS, 3) void dq_tensor_cores(AttentionGradients<T> a, const QueryTerms* terms,
                                                              bool aligned) {
  extern __shared__ uint4 shared[];
  T* const q = reinterpret_cast<T*>(shared);  // OWN rows
  T* const dout = q + OWN * D;                // OWN rows
  T* const stages = dout + OWN * D;           // twice OTHER rows of k and OTHER of v
  const AttentionShape& shape = a.shape;
  const int heads = shape.B * shape.H, head = blockIdx.x % heads;
  const int64_t b = head / shape.H, h = head % shape.H, hkv = h / shape.group();
  const int64_t i0 =
      int64_t(gridDim.x / heads - 1 - blockIdx.x / heads) * OWN;  // the last queries first: they see the most keys
  const int64_t keys = shape.visible_keys(i0 + OWN < shape.Tq ? i0 + OWN - 1 : shape.Tq - 1);
  const int64_t unmasked = shape.visible_keys(i0);  // keys that every query of the tile sees
  const int tiles = (keys + OTHER - 1) / OTHER, g = 16 * warp() + lane() / 4, t = lane() % 4;
  const float scale2 = LOG2E * shape.scale;
  terms += head * padded_queries(shape.Tq) + i0;
  const QueryTerms of_i[2] = {terms[g], terms[g + 8]};  // of the two rows that this lane has numbers of

  auto load = [&](int n) {
    T* k = stages + n % 2 * 2 * OTHER * D;
    load_tile<OTHER, D>(k, a.k, b, hkv, int64_t(n) * OTHER, shape.Tk, shape.D, aligned);
    load_tile<OTHER, D>(k + OTHER * D, a.v, b, hkv, int64_t(n) * OTHER, shape.Tk, shape.D, aligned);
  };
  if (tiles > 0) {
    load_tile<OWN, D>(q, a.q, b, h, i0, shape.Tq, shape.D, aligned);
    load_tile<OWN, D>(dout, a.dout, b, h, i0, shape.Tq, shape.D, aligned);
    load(0);
    cp_async_commit();
  }
  float dq[D / 8][4] = {};
  for (int n = 0; n < tiles; n++) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is here, and everybody has done with the one before
    if (n + 1 < tiles) {
      load(n + 1);
      cp_async_commit();
    }
    const T* k = stages + n % 2 * 2 * OTHER * D;
    const T* v = k + OTHER * D;
    const int64_t j0 = int64_t(n) * OTHER;

    float s[OTHER / 8][4] = {}, dp[OTHER / 8][4] = {};
    multiply_rows<D, OTHER>(s, q, 16 * warp(), k);      // S = Q K^T, without the scale
    multiply_rows<D, OTHER>(dp, dout, 16 * warp(), v);  // dP = dO V^T
#pragma unroll
    for (int m = 0; m < OTHER / 8; m++) {
#pragma unroll
      for (int e = 0; e < 4; e++) s[m][e] = exp2_approx(scale2 * s[m][e] - of_i[e / 2].lse2);  // P = exp(S - lse)
    }
    if (j0 + OTHER > unmasked) {
      const int visible[2] = {int(shape.visible_keys(i0 + g) - j0), int(shape.visible_keys(i0 + g + 8) - j0)};
#pragma unroll
      for (int m = 0; m < OTHER / 8; m++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          if (8 * m + 2 * t + e % 2 >= visible[e / 2]) s[m][e] = 0;
        }
      }
    }
#pragma unroll
    for (int m = 0; m < OTHER / 8; m++) {
#pragma unroll
      for (int e = 0; e < 4; e++) s[m][e] *= dp[m][e] - of_i[e / 2].delta;  // dS = P * (dP - delta)
    }
    uint32_t ds[OTHER / 16][4];
    to_a<T>(ds, s);
    multiply<D, OTHER>(dq, ds, k);  // dQ += dS K
  }
  store_rows<D>(dq, shape.scale, a.dq, b, h, i0 + 16 * warp(), shape.Tq, shape.D, aligned);
}

#if __CUDA_ARCH__ >= 1000
constexpr int BLOCKS = 2;  // in 168 registers Blackwell's code would spill
#else
constexpr int BLOCKS = 3;
#endif

template <int D, int OTHER, class T>
__global__ __launch_bounds__(THREADS, D == 64 ? BLOCKS : 2) void dk_dv_tensor_cores(AttentionGradients<T> a,
                                                                                    const QueryTerms* terms,
                                                                                    bool aligned) {
  extern __shared__ uint4 shared[];
  gradients_of_keys<D, OTHER>(a, terms, aligned, reinterpret_cast<T*>(shared), [](auto&, int64_t, int) {});
}

template <int D, int OTHER, class T>
static void launch(const AttentionGradients<T>& a, cudaStream_t stream) {
  constexpr int OF_QUERIES = (2 * OWN + 4 * OTHER) * D * sizeof(T), OF_KEYS = SHARED<D, OTHER, T> * sizeof(T);
  const AttentionShape& shape = a.shape;
  const Scratch<QueryTerms> terms(shape.B * shape.H * padded_queries(shape.Tq), stream);
  if (!terms.data) return;
  compute_query_terms(a, terms.data, stream);
  const bool aligned = in_chunks(a);
  auto dq = dq_tensor_cores<D, OTHER, T>;
  auto dk_dv = dk_dv_tensor_cores<D, OTHER, T>;
  cudaFuncSetAttribute(dq, cudaFuncAttributeMaxDynamicSharedMemorySize, OF_QUERIES);
  cudaFuncSetAttribute(dk_dv, cudaFuncAttributeMaxDynamicSharedMemorySize, OF_KEYS);
  const int64_t of_queries = (shape.Tq + OWN - 1) / OWN * shape.B * shape.H;
  const int64_t of_keys = (shape.Tk + OWN - 1) / OWN * shape.B * shape.Hkv;
  dq<<<of_queries, THREADS, OF_QUERIES, stream>>>(a, terms.data, aligned);
  dk_dv<<<of_keys, THREADS, OF_KEYS, stream>>>(a, terms.data, aligned);
}

extern "C" void attention_backward_tensor_cores(
    int64_t dtype, const void* dout, int64_t dout_batch, int64_t dout_head, int64_t dout_row, const void* q,
    int64_t q_batch, int64_t q_head, int64_t q_row, const void* k, int64_t k_batch, int64_t k_head, int64_t k_row,
    const void* v, int64_t v_batch, int64_t v_head, int64_t v_row, const void* out, int64_t out_batch, int64_t out_head,
    int64_t out_row, const float* lse, void* dq, int64_t dq_batch, int64_t dq_head, int64_t dq_row, void* dk,
    int64_t dk_batch, int64_t dk_head, int64_t dk_row, void* dv, int64_t dv_batch, int64_t dv_head, int64_t dv_row,
    int64_t B, int64_t H, int64_t Hkv, int64_t Tq, int64_t Tk, int64_t D, int64_t causal, float scale,
    cudaStream_t stream) {
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
  by_16_bit_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    if (D <= 64) {
      launch<64, 64>(typed<T>(a), stream);
    } else {
      launch<128, 32>(typed<T>(a), stream);
    }
  });
}
