// The next tiles travel while these are multiplied. Before, a block asked for a tile, waited for memory, and only then
// computed; now cp.async copies straight into shared memory, and the thread goes on. There are two places for a tile of
// K and V, and one barrier a step, which says two things at once: the tiles of this step are here (everybody waited for
// their own copies), and nobody reads those of the step before any more (so that the next may take their place).
//
//     copy     | K0 V0 | K1 V1         | K2 V2         | K3 V3         |
//     compute          | S0, P0, O     | S1, P1, O     | S2, P2, O     | ...
//     in place           0               1               0
//                      ^ wait, barrier ^               ^
//
// Two things more:
//   - 32 queries a warp, 128 a block: what is read of K and V, from global and from shared memory, serves twice as many
//     products. Q does not fit into the registers beside that; it stays in shared memory, and tiles have 32 keys.
//   - Scores are compared with the diagonal only where it passes, and what none of a warp's queries sees, the warp
//     leaves out. The first queries of the four warps of the block at i0 = 128:
//
//                       j0 = 0  32  64  96  128 160 192 224
//         warp 0, i = 128  |   |   |   |   | d |                  d: compared with the diagonal
//         warp 1, i = 160  |   |   |   |   |   | d |
//         warp 2, i = 192  |   |   |   |   |   |   | d |
//         warp 3, i = 224  |   |   |   |   |   |   |   | d |
//
// takes: bfloat16, float16; D up to 128; needs sm_80
// moved: 2 Tq Tk D / 128 numbers of 2 bytes a head (causal: half); 4 Tq Tk D FLOPs
// a block: 32 KB of shared memory and 168 registers a thread for D up to 64, else 64 KB and 255; no spills (sm_80 to 90)
// counted: 1 causal head, T 256, D 64: 6,176 sectors of global memory, 1,120 accesses to shared, 0 turns lost
// measured: not yet run on a GPU
#include "fragments.cuh"
#include "swizzle.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS, M = 2, BQ = 16 * M * WARPS, BK = 32;  // M: pieces of 16 queries a warp

// Starts to copy ROWS rows from row t0 on into a swizzled tile of rows of D_MAX numbers; zeros where x, which has
// `rows` rows of D numbers, ends. If rows do not lie at multiples of 16 bytes (`aligned`), it is done at once.
template <int ROWS, int D_MAX, class T>
__device__ void load_tile(T* tile, const Heads<const T>& x, int b, int h, int t0, int rows, int D, bool aligned) {
#pragma unroll 4
  for (int n = 0; n < ROWS * D_MAX / 8 / THREADS; n++) {
    const int r = (n * THREADS + threadIdx.x) / (D_MAX / 8), d = threadIdx.x % (D_MAX / 8) * 8;
    const int left = t0 + r < rows ? D - d : 0, here = left < 0 ? 0 : left < 8 ? left : 8;
    const T* from = x.row(b, h, t0 + r) + d;
    T* to = tile + swizzled<D_MAX>(r, d);
    if (aligned) {
      cp_async_16(to, from, here * sizeof(T));
    } else {
      for (int e = 0; e < 8; e++) to[e] = e < here ? from[e] : T{};
    }
  }
}

template <class T, int D_MAX>
__global__ __launch_bounds__(THREADS, D_MAX == 64 ? 3 : 2) void attend(AttentionForward<T> a, bool aligned) {
  extern __shared__ uint4 shared[];
  T* q_tile = reinterpret_cast<T*>(shared);  // (BQ, D_MAX)
  T* k_tiles = q_tile + BQ * D_MAX;          // (2, BK, D_MAX)
  T* v_tiles = k_tiles + 2 * BK * D_MAX;     // (2, BK, D_MAX)

  const AttentionShape& shape = a.shape;
  const int heads = shape.B * shape.H, head = blockIdx.x % heads, b = head / shape.H, h = head % shape.H;
  const int i0 = (gridDim.x / heads - 1 - blockIdx.x / heads) * BQ;  // the last queries first
  const int keys = shape.visible_keys(i0 + BQ < shape.Tq ? i0 + BQ - 1 : shape.Tq - 1);
  const int row = 16 * M * (threadIdx.x / 32), i = i0 + row, D = shape.D;  // i: the first query of this warp
  const int see = shape.causal ? i + 1 + shape.Tk - shape.Tq : shape.Tk, more = shape.causal;
  const float scale2 = positive_scale2(shape.scale);

  const auto load = [&](int j0) {
    const int place = j0 / BK % 2 * BK * D_MAX;
    load_tile<BK, D_MAX>(k_tiles + place, a.k, b, h / shape.group(), j0, shape.Tk, D, aligned);
    load_tile<BK, D_MAX>(v_tiles + place, a.v, b, h / shape.group(), j0, shape.Tk, D, aligned);
    cp_async_commit();
  };
  if (keys > 0) {
    load_tile<BQ, D_MAX>(q_tile, a.q, b, h, i0, shape.Tq, D, aligned);
    load(0);
  }

  float o[M][D_MAX / 8][4] = {};
  Running now[M];

  for (int j0 = 0; j0 < keys; j0 += BK) {
    cp_async_wait<0>();
    __syncthreads();  // the tiles are here, and nobody reads those from before any more
    if (j0 + BK < keys) load(j0 + BK);
    if (j0 >= see + more * (16 * M - 1)) continue;
    const int place = j0 / BK % 2 * BK * D_MAX;

    float s[M][BK / 8][4] = {};  // S = Q K^T
#pragma unroll
    for (int d = 0; d < D_MAX; d += 16) {
      uint32_t q[M][4];
#pragma unroll
      for (int m = 0; m < M; m++) ldmatrix_x4(q[m], q_tile + (along<D_MAX>(row + 16 * m) ^ d));
#pragma unroll
      for (int j = 0; j < BK; j += 16) {
        uint32_t k[4];
        ldmatrix_x4(k, k_tiles + ((place + across<D_MAX>(j)) ^ d));
#pragma unroll
        for (int m = 0; m < M; m++) mma_pair<T>(s[m][j / 8], s[m][j / 8 + 1], q[m], k);
      }
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
      make_scale_positive(s[m], shape.scale);
      if (j0 + BK > see) {
        const int first = see + more * (16 * m + threadIdx.x % 32 / 4) - j0;
        const int visible[2] = {first, first + 8 * more};
        hide(s[m], visible);
      }
      online_softmax(s[m], now[m], o[m], scale2);
    }

#pragma unroll
    for (int j = 0; j < BK; j += 16) {  // O += P V
      uint32_t p[M][4];
#pragma unroll
      for (int m = 0; m < M; m++) left_factor<T>(p[m], s[m], j / 16);
#pragma unroll
      for (int d = 0; d < D_MAX; d += 16) {
        uint32_t v[4];
        ldmatrix_x4_trans(v, v_tiles + ((place + along<D_MAX>(j)) ^ d));
#pragma unroll
        for (int m = 0; m < M; m++) mma_pair<T>(o[m][d / 8], o[m][d / 8 + 1], p[m], v);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < M; m++) store_rows(a, b, h, i + 16 * m, o[m], now[m], scale2, aligned);
}

template <class T, int D_MAX>
static void launch(const AttentionForward<T>& a, cudaStream_t stream) {
  const AttentionShape& shape = a.shape;
  const int64_t blocks = (shape.Tq + BQ - 1) / BQ * shape.B * shape.H;
  const int bytes = (BQ + 4 * BK) * D_MAX * sizeof(T);
  const bool aligned = rows_aligned(a.q, 8) && rows_aligned(a.k, 8) && rows_aligned(a.v, 8) && rows_aligned(a.out, 2);
  auto kernel = attend<T, D_MAX>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<blocks, THREADS, bytes, stream>>>(a, aligned);
}

extern "C" void attention_forward_pipelined(int64_t dtype, const void* q, int64_t q_batch, int64_t q_head,
                                            int64_t q_row, const void* k, int64_t k_batch, int64_t k_head,
                                            int64_t k_row, const void* v, int64_t v_batch, int64_t v_head,
                                            int64_t v_row, void* out, int64_t out_batch, int64_t out_head,
                                            int64_t out_row, float* lse, int64_t B, int64_t H, int64_t Hkv, int64_t Tq,
                                            int64_t Tk, int64_t D, int64_t causal, float scale, cudaStream_t stream) {
  const AttentionForward<void> given = {{q, q_batch, q_head, q_row},
                                        {k, k_batch, k_head, k_row},
                                        {v, v_batch, v_head, v_row},
                                        {out, out_batch, out_head, out_row},
                                        lse,
                                        {B, H, Hkv, Tq, Tk, D, causal != 0, scale}};
  by_16_bit_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    D <= 64 ? launch<T, 64>(typed<T>(given), stream) : launch<T, 128>(typed<T>(given), stream);
  });
}
