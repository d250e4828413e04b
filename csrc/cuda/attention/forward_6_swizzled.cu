// The same kernel with another way from shared memory to registers. The tiles are swizzled (swizzle.cuh), and ldmatrix
// reads four 8 x 8 matrices, 512 bytes, in one instruction: each lane names one row of 16 bytes, and gets its share of
// what mma wants. Transposed on the way, it gives V as a right factor too, which took four 16-bit reads before.
//
//                               instructions                       times a bank is asked for by one of them
//                               before            now              before     now (of each 128 bytes)
//     16 x 16 numbers of K      4 reads of 32     1 ldmatrix       8          1
//     16 x 16 numbers of V      8 reads of 16     1 ldmatrix       4          1
//
// Q comes the same way, through the place of the first tile of K.
//
// takes: bfloat16, float16; D up to 128; needs sm_80
// moved: 2 Tq Tk D / 64 numbers of 2 bytes a head (causal: half), as before; 4 Tq Tk D FLOPs
// a block: 16 KB of shared memory and 128 registers a thread for D up to 64, else 32 KB and 168; no spills (sm_90)
// counted: 1 causal head, T 256, D 64: 8,224 sectors of global memory, 1,728 accesses to shared, 0 turns lost
// measured: not yet run on a GPU
#include "fragments.cuh"
#include "swizzle.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS, BQ = 16 * WARPS, BK = 64;
static_assert(BQ == BK, "Q takes the place of a tile of K");

// Copies BK rows from row t0 on into a swizzled tile of rows of D_MAX numbers, a chunk at a time if rows are so
// `aligned`; zeros where x, which has `rows` rows of D numbers, ends.
template <int D_MAX, class T>
__device__ void load_tile(T* tile, const Heads<const T>& x, int b, int h, int t0, int rows, int D, bool aligned) {
  for (int n = threadIdx.x; n < BK * D_MAX / 8; n += THREADS) {
    const int r = n / (D_MAX / 8), d = n % (D_MAX / 8) * 8, here = t0 + r < rows ? D - d : 0;
    const T* from = x.row(b, h, t0 + r) + d;
    T* to = tile + swizzled<D_MAX>(r, d);
    if (aligned && here >= 8) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int e = 0; e < 8; e++) to[e] = e < here ? from[e] : T{};
    }
  }
}

template <class T, int D_MAX>
__global__ __launch_bounds__(THREADS) void attend(AttentionForward<T> a, bool aligned) {
  __shared__ __align__(16) T k_tile[BK * D_MAX];
  __shared__ __align__(16) T v_tile[BK * D_MAX];

  const AttentionShape& shape = a.shape;
  const int heads = shape.B * shape.H, head = blockIdx.x % heads, b = head / shape.H, h = head % shape.H;
  const int i0 = (gridDim.x / heads - 1 - blockIdx.x / heads) * BQ;  // the last queries first
  const int keys = shape.visible_keys(i0 + BQ < shape.Tq ? i0 + BQ - 1 : shape.Tq - 1);
  const int warp = threadIdx.x / 32, i = i0 + 16 * warp + threadIdx.x % 32 / 4, D = shape.D;

  load_tile<D_MAX>(k_tile, a.q, b, h, i0, shape.Tq, D, aligned);
  __syncthreads();            // Q is here
  uint32_t q[D_MAX / 16][4];  // this warp's rows of it
#pragma unroll
  for (int n = 0; n < D_MAX / 16; n++) ldmatrix_x4(q[n], k_tile + (along<D_MAX>(16 * warp) ^ 16 * n));

  float o[D_MAX / 8][4] = {};
  Running now;
  const float scale2 = positive_scale2(shape.scale);

  for (int j0 = 0; j0 < keys; j0 += BK) {
    __syncthreads();  // nobody reads the tiles from before any more
    load_tile<D_MAX>(k_tile, a.k, b, h / shape.group(), j0, shape.Tk, D, aligned);
    load_tile<D_MAX>(v_tile, a.v, b, h / shape.group(), j0, shape.Tk, D, aligned);
    __syncthreads();  // the tiles are here

    float s[BK / 8][4] = {};  // S = Q K^T
#pragma unroll
    for (int d = 0; d < D_MAX; d += 16) {
#pragma unroll
      for (int j = 0; j < BK; j += 16) {
        uint32_t k[4];
        ldmatrix_x4(k, k_tile + (across<D_MAX>(j) ^ d));
        mma_pair<T>(s[j / 8], s[j / 8 + 1], q[d / 16], k);
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
      for (int d = 0; d < D_MAX; d += 16) {
        uint32_t v[4];
        ldmatrix_x4_trans(v, v_tile + (along<D_MAX>(j) ^ d));
        mma_pair<T>(o[d / 8], o[d / 8 + 1], p, v);
      }
    }
  }
  store_rows(a, b, h, i0 + 16 * warp, o, now, scale2, aligned);
}

extern "C" void attention_forward_swizzled(int64_t dtype, const void* q, int64_t q_batch, int64_t q_head, int64_t q_row,
                                           const void* k, int64_t k_batch, int64_t k_head, int64_t k_row, const void* v,
                                           int64_t v_batch, int64_t v_head, int64_t v_row, void* out, int64_t out_batch,
                                           int64_t out_head, int64_t out_row, float* lse, int64_t B, int64_t H,
                                           int64_t Hkv, int64_t Tq, int64_t Tk, int64_t D, int64_t causal, float scale,
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
    const bool aligned = rows_aligned(a.q, 8) && rows_aligned(a.k, 8) && rows_aligned(a.v, 8) && rows_aligned(a.out, 2);
    auto kernel = D <= 64 ? attend<T, 64> : attend<T, 128>;
    kernel<<<blocks, THREADS, 0, stream>>>(a, aligned);
  });
}
