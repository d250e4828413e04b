// All three gradients in one kernel, five products instead of seven: the price of determinism, seen from the other side.
// The kernel is that of dk and dv from the rung before. It has dS of its 64 keys at hand, so it multiplies it with K at
// once, and adds the result to dq. But a query's dq is a sum over all tiles of keys, each in another block: they add
// with atomicAdd, in whatever order they come. Float addition is not associative, so dq differs in its last bits from
// run to run; dk and dv, with one owner each, do not.
//
//              32 queries                   D columns
//            +------------+               +-----+-----+         dS^T lies in the registers of four warps, 16 keys in
//    64      | dS^T from  |      32       |warp0|warp2|         each, and dS K sums over all 64. So it goes through
//    keys    | warp 0     |   queries     +-----+-----+  of dQ  shared memory, transposed on its way out by ldmatrix,
//            | warp 1 ... |               |warp1|warp3|         and costs one more barrier a tile.
//            +------------+               +-----+-----+
//
// Not the default: every run should give the same.
//
// takes: bfloat16, float16; D up to 128; not deterministic; needs sm_80
// moved: what dk and dv read in the rung before, and 4 D bytes of additions in the L2 cache for each query and each tile
//     of 64 keys; then dq once more, to be scaled and rounded. 10 D FLOPs a pair, where the rung before has 14 D
// shared memory: 40.5 KB, 72.5 KB for D over 64. Registers: 168 and 244. Scratch memory: B H Tq D floats
// counted: 1 causal head, T 256, D 64: 27,552 sectors of global memory, 7,828 accesses to shared, 0 turns lost
// measured: (none yet)
#include "../scratch.cuh"
#include "backward_mma.cuh"

constexpr int OTHER = 32;   // queries in a tile
constexpr int DS_ROW = 64;  // numbers from one row of the tile of dS^T to the next, of which half are used: swizzle.cuh

// Writes dS^T of the warp's 16 keys, all OTHER queries of it, into the tile: two numbers at a time, which lie side by
// side in both; the 32 lanes write to 32 different banks.
template <class T>
__device__ void to_tile(T* tile, const uint32_t (&ds)[OTHER / 16][4]) {
#pragma unroll
  for (int n = 0; n < OTHER / 8; n++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = 16 * warp() + lane() / 4 + 8 * half;
      T* to = tile + swizzled<DS_ROW>(row, 8 * n) + lane() % 4 * 2;
      *reinterpret_cast<uint32_t*>(to) = ds[n / 2][n % 2 * 2 + half];
    }
  }
}

// dQ += dS K for the tile's 32 queries and the block's 64 keys: a warp computes half the columns of 16 queries.
template <int D, class T>
__device__ void add_to_dq(float* dq, const T* ds, const T* k) {
  constexpr int COLUMNS = D / 2;
  const int row = warp() % 2 * 16, column = warp() / 2 * COLUMNS;
  float sum[COLUMNS / 8][4] = {};
#pragma unroll 1
  for (int j = 0; j < OWN; j += 16) {
    uint32_t dsj[4], kj[4];
    ldmatrix_x4_trans(dsj, ds + (across<DS_ROW>(j) ^ row));
#pragma unroll
    for (int d = 0; d < COLUMNS; d += 16) {
      ldmatrix_x4_trans(kj, k + (along<D>(j) ^ (column + d)));
      mma_pair<T>(sum[d / 8], sum[d / 8 + 1], dsj, kj);
    }
  }
  dq += (row + lane() / 4) * D + column + lane() % 4 * 2;
#pragma unroll
  for (int n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) atomicAdd(dq + e / 2 * 8 * D + 8 * n + e % 2, sum[n][e]);
  }
}

// grid (B Hkv, tiles of keys). dq_sum is (B, H, padded queries, D) floats, 0 at first.
template <int D, class T>
__global__ __launch_bounds__(THREADS, D == 64 ? 3 : 2) void all_gradients(AttentionGradients<T> a,
                                                                          const QueryTerms* terms, float* dq_sum,
                                                                          bool aligned) {
  constexpr int STAGE = 2 * OTHER * D + OTHER * sizeof(QueryTerms) / sizeof(T);  // q, dout, terms
  extern __shared__ uint4 shared[];
  T* const k = reinterpret_cast<T*>(shared);  // OWN rows
  T* const v = k + OWN * D;                   // OWN rows
  T* const stages = v + OWN * D;              // twice OTHER rows of q, of dout, and of terms
  T* const ds = stages + 2 * STAGE;           // dS^T: OWN rows of DS_ROW numbers, swizzled as all tiles are
  const AttentionShape& shape = a.shape;
  const int64_t b = blockIdx.x / shape.Hkv, hkv = blockIdx.x % shape.Hkv, j0 = int64_t(blockIdx.y) * OWN;
  const int unmasked = shape.first_query(j0 + OWN - 1);  // queries from here on see every key of the tile
  const int first = shape.first_query(j0) / OTHER, tiles_a_head = (shape.Tq + OTHER - 1) / OTHER - first;
  const int tiles = tiles_a_head * shape.group(), g = 16 * warp() + lane() / 4, t = lane() % 4;
  const int seen_from[2] = {int(shape.first_query(j0 + g)), int(shape.first_query(j0 + g + 8))};
  const float scale2 = LOG2E * shape.scale;

  auto load = [&](int n) {
    T* q = stages + n % 2 * STAGE;
    T* dout = q + OTHER * D;
    const int64_t h = hkv * shape.group() + n / tiles_a_head;
    const int i0 = (first + n % tiles_a_head) * OTHER;
    load_tile<OTHER, D>(q, a.q, b, h, i0, shape.Tq, shape.D, aligned);
    load_tile<OTHER, D>(dout, a.dout, b, h, i0, shape.Tq, shape.D, aligned);
    if (threadIdx.x < OTHER / 2) {  // two queries' terms are 16 bytes
      cp_async_16(dout + OTHER * D + 8 * threadIdx.x,
                  terms + (b * shape.H + h) * padded_queries(shape.Tq) + i0 + 2 * threadIdx.x, 16);
    }
  };
  load_tile<OWN, D>(k, a.k, b, hkv, j0, shape.Tk, shape.D, aligned);
  load_tile<OWN, D>(v, a.v, b, hkv, j0, shape.Tk, shape.D, aligned);
  load(0);
  cp_async_commit();

  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  for (int n = 0; n < tiles; n++) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is here, and everybody has done with the one before, and with its dS
    if (n + 1 < tiles) {
      load(n + 1);
      cp_async_commit();
    }
    const T* q = stages + n % 2 * STAGE;
    const T* dout = q + OTHER * D;
    const QueryTerms* of = reinterpret_cast<const QueryTerms*>(dout + OTHER * D);
    const int64_t h = hkv * shape.group() + n / tiles_a_head;
    const int i0 = (first + n % tiles_a_head) * OTHER;

    float s[OTHER / 8][4] = {}, dp[OTHER / 8][4] = {};
    uint32_t left[OTHER / 16][4];
    multiply_rows<D, OTHER>(s, k, 16 * warp(), q);  // S^T = K Q^T, without the scale
#pragma unroll
    for (int m = 0; m < OTHER / 8; m++) {
#pragma unroll
      for (int e = 0; e < 4; e++) s[m][e] = exp2_approx(scale2 * s[m][e] - of[8 * m + 2 * t + e % 2].lse2);
    }  // P^T = exp(S^T - lse)
    if (i0 < unmasked || i0 + OTHER > shape.Tq) {  // a query past the end is all 0, but 0 times infinity is NaN
#pragma unroll
      for (int m = 0; m < OTHER / 8; m++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int i = i0 + 8 * m + 2 * t + e % 2;
          if (i < seen_from[e / 2] || i >= shape.Tq) s[m][e] = 0;
        }
      }
    }
    to_a<T>(left, s);
    multiply<D, OTHER>(dv, left, dout);                 // dV += P^T dO
    multiply_rows<D, OTHER>(dp, v, 16 * warp(), dout);  // dP^T = V dO^T
#pragma unroll
    for (int m = 0; m < OTHER / 8; m++) {
#pragma unroll
      for (int e = 0; e < 4; e++) s[m][e] *= dp[m][e] - of[8 * m + 2 * t + e % 2].delta;  // dS = P * (dP - delta)
    }
    to_a<T>(left, s);
    to_tile(ds, left);
    multiply<D, OTHER>(dk, left, q);                                                        // dK += dS^T Q
    __syncthreads();                                                                        // dS is here
    add_to_dq<D>(dq_sum + ((b * shape.H + h) * padded_queries(shape.Tq) + i0) * D, ds, k);  // dQ += dS K
  }
  store_rows<D>(dk, shape.scale, a.dk, b, hkv, j0 + 16 * warp(), shape.Tk, shape.D, aligned);
  store_rows<D>(dv, 1.0f, a.dv, b, hkv, j0 + 16 * warp(), shape.Tk, shape.D, aligned);
}

// One warp a query of the padded ones, eight a block.
template <int D, class T>
__global__ void round_dq(AttentionGradients<T> a, const float* dq_sum) {
  const int64_t padded = padded_queries(a.shape.Tq), n = int64_t(blockIdx.x) * 8 + threadIdx.y;  // head * padded + i
  const int64_t i = n % padded, h = n / padded % a.shape.H, b = n / padded / a.shape.H;
  if (i >= a.shape.Tq) return;
  T* dq = a.dq.row(b, h, i);
  for (int d = threadIdx.x; d < a.shape.D; d += 32) dq[d] = from_float<T>(a.shape.scale * dq_sum[n * D + d]);
}

template <int D, class T>
static void launch(const AttentionGradients<T>& a, cudaStream_t stream) {
  constexpr int SHARED = ((2 * OWN + 4 * OTHER) * D + OWN * DS_ROW) * sizeof(T) + 2 * OTHER * sizeof(QueryTerms);
  const AttentionShape& shape = a.shape;
  const int64_t queries = shape.B * shape.H * padded_queries(shape.Tq);
  const Scratch<QueryTerms> terms(queries, stream);
  const Scratch<float> dq_sum(queries * D, stream);
  if (!terms.data || !dq_sum.data) return;
  cudaMemsetAsync(dq_sum.data, 0, queries * D * sizeof(float), stream);
  compute_query_terms(a, terms.data, stream);
  const bool aligned = in_chunks(a);
  auto kernel = all_gradients<D, T>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED);
  const dim3 of_keys(shape.B * shape.Hkv, (shape.Tk + OWN - 1) / OWN);
  kernel<<<of_keys, THREADS, SHARED, stream>>>(a, terms.data, dq_sum.data, aligned);
  round_dq<D><<<queries / 8, dim3(32, 8), 0, stream>>>(a, dq_sum.data);
}

extern "C" void attention_backward_fused(int64_t dtype, const void* dout, int64_t dout_batch, int64_t dout_head,
                                         int64_t dout_row, const void* q, int64_t q_batch, int64_t q_head,
                                         int64_t q_row, const void* k, int64_t k_batch, int64_t k_head, int64_t k_row,
                                         const void* v, int64_t v_batch, int64_t v_head, int64_t v_row, const void* out,
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
  by_16_bit_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    if (D <= 64) {
      launch<64>(typed<T>(a), stream);
    } else {
      launch<128>(typed<T>(a), stream);
    }
  });
}
