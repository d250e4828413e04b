// All three gradients in one kernel, five products instead of seven: the price of determinism, seen from the other side.
// The kernel is that of dk and dv from the rung before (backward_keys.cuh). It has dS of its 64 keys at hand, so it
// multiplies it with K at once, and adds the result to dq. But a query's dq is a sum over all tiles of keys, each in
// another block: they add with atomicAdd, in whatever order they come. Float addition is not associative, so dq differs
// in its last bits from run to run; dk and dv, with one owner each, do not.
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
// shared memory: 40.5 KB, 72.5 KB for D over 64. Registers: 168 and 246. Scratch memory: B H Tq D floats
// counted: 1 causal head, T 256, D 64: 27,552 sectors of global memory, 7,828 accesses to shared, 0 turns lost
// measured: not yet run on a GPU
#include "../scratch.cuh"
#include "backward_keys.cuh"

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

// dq_sum is (B, H, padded queries, D) floats, 0 at first.
template <int D, class T>
__global__ __launch_bounds__(THREADS, D == 64 ? 3 : 2) void all_gradients(AttentionGradients<T> a,
                                                                          const QueryTerms* terms, float* dq_sum,
                                                                          bool aligned) {
  extern __shared__ uint4 shared[];
  T* const k = reinterpret_cast<T*>(shared);
  T* const ds = k + SHARED<D, OTHER, T>;  // dS^T: OWN rows of DS_ROW numbers, swizzled as all tiles are
  gradients_of_keys<D, OTHER>(a, terms, aligned, k, [&](auto& of_warp, int64_t head, int i0) {
    to_tile(ds, of_warp);
    __syncthreads();  // dS is here; the barrier of the next tile comes before it is overwritten
    add_to_dq<D>(dq_sum + (head * padded_queries(a.shape.Tq) + i0) * D, ds, k);  // dQ += dS K
  });
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
  constexpr int BYTES = (SHARED<D, OTHER, T> + OWN * DS_ROW) * sizeof(T);
  const AttentionShape& shape = a.shape;
  const int64_t queries = shape.B * shape.H * padded_queries(shape.Tq);
  const Scratch<QueryTerms> terms(queries, stream);
  const Scratch<float> dq_sum(queries * D, stream);
  if (!terms.data || !dq_sum.data) return;
  cudaMemsetAsync(dq_sum.data, 0, queries * D * sizeof(float), stream);
  compute_query_terms(a, terms.data, stream);
  const bool aligned = in_chunks(a);
  auto kernel = all_gradients<D, T>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
  const int64_t of_keys = (shape.Tk + OWN - 1) / OWN * shape.B * shape.Hkv;
  kernel<<<of_keys, THREADS, BYTES, stream>>>(a, terms.data, dq_sum.data, aligned);
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
