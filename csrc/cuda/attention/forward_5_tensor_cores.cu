// Both products on the tensor cores: one instruction (mma, ptx.cuh) multiplies a 16 x 16 piece of 16-bit numbers with a
// 16 x 8 one and adds to a 16 x 8 piece of float32, for all 32 lanes of a warp together: 2048 multiply-adds, where a
// warp did 32. The walk is that of the rung before; what is new is who holds what.
//
//                        64 keys                  The four warps of a block split the queries, not the keys: each
//                     +-----------+               has 16 rows of S, P and O to itself, so that no warp ever waits for
//                     |    K^T    | D             another's maximum. Q stays in its registers, as left factors (A);
//                     +-----------+               O, in pieces of C; and P goes from one to the other as it is:
//     warp 0  +-----+ +-----------+   +-----+     fragments.cuh draws why no shared memory is needed for it.
//     warp 1  |  Q  | |   S, P    |   |  O  |
//     warp 2  |     | |           |   |     |     K and V are right factors (B). Lane 4 g + t holds in b[0] the numbers
//     warp 3  +-----+ +-----------+   +-----+     of rows 2t, 2t+1 and column g, in b[1] of rows 2t+8, 2t+9:
//                D                       D
//          S = Q K^T:  the column g of K^T is a row of K: two neighbours in memory, one 32-bit read
//          O += P V:   the rows 2t, 2t+1 of V are two rows in memory: two 16-bit reads, put together
//
// Such reads are this rung's weakness. A row of K is D numbers, 32 or 64 banks, so that the same columns of all rows
// lie in the same bank: the 8 rows that a read touches wait for one another, 8 times 4 banks instead of 32 at once.
//
// Arithmetic that is not a product now weighs more. Exponentials become powers of two, one instruction each, with the
// scale folded into a multiply-add (fragments.cuh).
//
// takes: bfloat16, float16; D up to 128; needs sm_80
// moved: 2 Tq Tk D / 64 numbers of 2 bytes a head (causal: half); 4 Tq Tk D FLOPs
// a block: 16 KB of shared memory and 130 registers a thread for D up to 64, else 32 KB and 172; no spills (sm_90)
// counted: 1 causal head, T 256, D 64: 11,296 sectors of global memory, 8,000 accesses to shared, 33,280 turns lost
// measured: not yet run on a GPU
#include "fragments.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS, BQ = 16 * WARPS, BK = 64;

// Copies BK rows from row t0 on into a tile of rows of D_MAX numbers, 8 (16 bytes) at a time if rows are so `aligned`;
// zeros where x, which has T rows of D numbers, ends.
template <int D_MAX, class T>
__device__ void load_tile(T (*tile)[D_MAX], const Heads<const T>& x, int b, int h, int t0, int rows, int D,
                          bool aligned) {
  for (int n = threadIdx.x; n < BK * D_MAX / 8; n += THREADS) {
    const int r = n / (D_MAX / 8), d = n % (D_MAX / 8) * 8, here = t0 + r < rows ? D - d : 0;
    const T* from = x.row(b, h, t0 + r) + d;
    if (aligned && here >= 8) {
      *reinterpret_cast<uint4*>(&tile[r][d]) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int e = 0; e < 8; e++) tile[r][d + e] = e < here ? from[e] : T{};
    }
  }
}

// Two numbers in a register: of one row, and of two.
template <class T>
__device__ inline uint32_t pair(T low, T high) {
  return low.bits | uint32_t(high.bits) << 16;
}
template <class T>
__device__ inline uint32_t pair(const T* neighbours) {
  return *reinterpret_cast<const uint32_t*>(neighbours);
}

template <class T, int D_MAX>
__global__ __launch_bounds__(THREADS) void attend(AttentionForward<T> a, bool aligned) {
  __shared__ __align__(16) T k_tile[BK][D_MAX];
  __shared__ __align__(16) T v_tile[BK][D_MAX];

  const AttentionShape& shape = a.shape;
  const int heads = shape.B * shape.H, head = blockIdx.x % heads, b = head / shape.H, h = head % shape.H;
  const int i0 = (gridDim.x / heads - 1 - blockIdx.x / heads) * BQ;  // the last queries first
  const int keys = shape.visible_keys(i0 + BQ < shape.Tq ? i0 + BQ - 1 : shape.Tq - 1);
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, D = shape.D;
  const int i = i0 + 16 * warp + g;  // this lane has the queries i and i + 8

  uint32_t q[D_MAX / 16][4];  // this warp's rows of Q, in pieces of 16 x 16
#pragma unroll
  for (int n = 0; n < D_MAX / 16; n++) {
#pragma unroll
    for (int p = 0; p < 4; p++) {
      const int row = i + p % 2 * 8, d = 16 * n + 2 * t + p / 2 * 8, here = row < shape.Tq ? D - d : 0;
      const T* from = a.q.row(b, h, row) + d;
      q[n][p] = pair(here > 0 ? from[0] : T{}, here > 1 ? from[1] : T{});
    }
  }
  float o[D_MAX / 8][4] = {};
  Running now;
  const float scale2 = positive_scale2(shape.scale);

  for (int j0 = 0; j0 < keys; j0 += BK) {
    __syncthreads();  // nobody reads the tiles from before any more
    load_tile(k_tile, a.k, b, h / shape.group(), j0, shape.Tk, D, aligned);
    load_tile(v_tile, a.v, b, h / shape.group(), j0, shape.Tk, D, aligned);
    __syncthreads();  // the tiles are here

    float s[BK / 8][4] = {};  // S = Q K^T
#pragma unroll
    for (int d = 0; d < D_MAX; d += 16) {
#pragma unroll
      for (int n = 0; n < BK / 8; n++) {
        const uint32_t k[2] = {pair(&k_tile[8 * n + g][d + 2 * t]), pair(&k_tile[8 * n + g][d + 2 * t + 8])};
        mma_m16n8k16<T>(s[n], q[d / 16], k);
      }
    }
    make_scale_positive(s, shape.scale);
    const int visible[2] = {int(shape.visible_keys(i)) - j0, int(shape.visible_keys(i + 8)) - j0};
    hide(s, visible);
    online_softmax(s, now, o, scale2);

#pragma unroll
    for (int j = 0; j < BK; j += 16) {  // O += P V
      uint32_t p[4];
      left_factor<T>(p, s, j / 16);
#pragma unroll
      for (int n = 0; n < D_MAX / 8; n++) {
        const int d = 8 * n + g;
        const uint32_t v[2] = {pair(v_tile[j + 2 * t][d], v_tile[j + 2 * t + 1][d]),
                               pair(v_tile[j + 2 * t + 8][d], v_tile[j + 2 * t + 9][d])};
        mma_m16n8k16<T>(o[n], p, v);
      }
    }
  }
  store_rows(a, b, h, i0 + 16 * warp, o, now, scale2, aligned);
}

extern "C" void attention_forward_tensor_cores(int64_t dtype, const void* q, int64_t q_batch, int64_t q_head,
                                               int64_t q_row, const void* k, int64_t k_batch, int64_t k_head,
                                               int64_t k_row, const void* v, int64_t v_batch, int64_t v_head,
                                               int64_t v_row, void* out, int64_t out_batch, int64_t out_head,
                                               int64_t out_row, float* lse, int64_t B, int64_t H, int64_t Hkv,
                                               int64_t Tq, int64_t Tk, int64_t D, int64_t causal, float scale,
                                               cudaStream_t stream) {
  const int64_t blocks = (Tq + BQ - 1) / BQ * B * H;
  const AttentionForward<void> given = {{q, q_batch, q_head, q_row},
                                        {k, k_batch, k_head, k_row},
                                        {v, v_batch, v_head, v_row},
                                        {out, out_batch, out_head, out_row},
                                        lse,
                                        {B, H, Hkv, Tq, Tk, D, causal != 0, scale}};
  by_16_bit_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    const auto a = typed<T>(given);
    const bool aligned = rows_aligned(a.k, 8) && rows_aligned(a.v, 8) && rows_aligned(a.out, 2);
    auto kernel = D <= 64 ? attend<T, 64> : attend<T, 128>;
    kernel<<<blocks, THREADS, 0, stream>>>(a, aligned);
  });
}
