// Tiles: a block reads 64 keys into shared memory once for 64 queries, where before every query read them for itself;
// and a thread computes a small tile of scores in registers, so that every number it reads from there serves several
// multiply-adds. The online softmax is that of the rung before, for a tile of keys at a time. For BQ queries:
//
//                     BK keys                S  = scale Q K^T           BQ x BK, in registers
//                  +-----------+             m' = max(m, max_j S)       per row
//              D   |    K^T    |             c  = exp(m - m')
//                  +-----------+             P  = exp(S - m')           to shared memory
//          D            BK            D      l  = l c + sum_j P
//       +-----+    +-----------+   +-----+   O  = O c + P V             BQ x D, in registers
//   BQ  |  Q  |    |   S, P    |   |  O  |
//       +-----+    +-----------+   +-----+
//
// 16 threads share 8 rows; a warp has 16 rows, its two half warps take turns. Thread x of the 16 computes, in each of
// its 8 rows, the scores of the keys x, x+16, x+32, x+48 and four columns of O out of every 64, from 4x on (for D over
// 128 tiles are smaller, and a thread has fewer keys):
//
//         x =   0   1  ...  15   0   1  ...  15 ...             x =    0       1     ...   15
//   row 0 |   [ S   S  ...   S | S   S  ...   S | ... ]   |        [ O O O O O O O O ... O O O O ]   half warp 0
//   row 1 |   [ S   S  ...   S | S   S  ...   S | ... ]   |        [ O O O O O O O O ... O O O O ]   half warp 1
//   row 2 |   ...                                                                                    half warp 0
//
// Q, K and P lie in rows, and 4 numbers of a row are read at a time (float4): for 4 steps of d, a thread reads 4 of
// each of its 4 keys and, row by row, 4 of q, which makes 12 reads for 128 multiply-adds. Rows of Q and K are padded by
// 4 floats: 8 threads that read the same columns of 8 neighbouring rows then hit 32 different banks. Rows of P are
// padded by 16, so that the two half warps write to different banks. V takes the place of K when the scores are done.
//
// Tiles that no query of the block sees are skipped. As those of the last queries have most to do, they start first.
//
// moved: 2 Tq Tk D / BQ numbers a head (causal: half), of float32 8 D bytes a key and block; 4 Tq Tk D FLOPs
// takes: float32, bfloat16, float16; D up to 256
// a block: 54 KB of shared memory and 168 registers a thread for D up to 64, 60 KB and 226 up to 128, 51 KB and 255 up to
// 256; no spills (sm_90)
// counted: 1 causal head, T 256, D 64: 14,464 sectors of global memory, 17,408 accesses to shared, 0 turns lost
// measured: not yet run on a GPU
#include "forward.cuh"
#include "four.cuh"

constexpr int R = 8;  // rows a thread
__host__ __device__ constexpr int threads(int BQ) { return BQ / R * 16; }
__host__ __device__ constexpr int score_row(int BK) { return BK / 32 * 32 + 16; }  // floats from row to row of P

__device__ inline float4& at4(float* tile, int i) { return *reinterpret_cast<float4*>(tile + i); }

// Copies ROWS rows from row t0 on, D_MAX numbers of each, into a tile of floats; zeros where x, which has `rows`
// rows of D, ends.
template <int ROWS, int D_MAX, int THREADS, class T>
__device__ void load_tile(float* tile, const Heads<const T>& x, int b, int h, int t0, int rows, int D, bool aligned) {
#pragma unroll 4
  for (int n = 0; n < ROWS * D_MAX / 4 / THREADS; n++) {
    const int r = (n * THREADS + threadIdx.x) / (D_MAX / 4), d = (n * THREADS + threadIdx.x) % (D_MAX / 4) * 4;
    const T* row = x.row(b, h, t0 + r) + d;
    at4(tile, r * (D_MAX + 4) + d) = load4(row, t0 + r < rows ? D - d : 0, aligned);
  }
}

// The largest, and the sum, over the 16 threads that share a row.
__device__ inline float row_max(float x) {
  for (int distance = 8; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, distance));
  return x;
}
__device__ inline float row_sum(float x) {
  for (int distance = 8; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffff, x, distance);
  return x;
}

__device__ inline float dot4(float sum, float4 a, float4 b) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
__device__ inline void add4(float4& sum, float a, float4 b) {
  sum = make_float4(fmaf(a, b.x, sum.x), fmaf(a, b.y, sum.y), fmaf(a, b.z, sum.z), fmaf(a, b.w, sum.w));
}

// D is at most D_MAX. `aligned`: rows of q, k, v and out start at multiples of four numbers.
template <class T, int BQ, int BK, int D_MAX>
__global__ __launch_bounds__(threads(BQ), 3) void attend(AttentionForward<T> a, bool aligned) {
  constexpr int C = BK / 16, N = D_MAX / 64;  // scores, and float4s of O, of a thread in a row
  constexpr int ROW = D_MAX + 4, P_ROW = score_row(BK);
  extern __shared__ float4 shared[];
  float* q_tile = reinterpret_cast<float*>(shared);  // (BQ, ROW)
  float* kv_tile = q_tile + BQ * ROW;                // (BK, ROW)
  float* p_tile = kv_tile + BK * ROW;                // (BQ, P_ROW)

  const AttentionShape& shape = a.shape;
  const int heads = shape.B * shape.H, head = blockIdx.x % heads, b = head / shape.H, h = head % shape.H;
  const int i0 = (gridDim.x / heads - 1 - blockIdx.x / heads) * BQ;  // the last queries first
  const int keys = shape.visible_keys(i0 + BQ < shape.Tq ? i0 + BQ - 1 : shape.Tq - 1);
  const int D = shape.D, x = threadIdx.x % 16, first_row = threadIdx.x / 32 * 2 * R + threadIdx.x % 32 / 16;
  load_tile<BQ, D_MAX, threads(BQ)>(q_tile, a.q, b, h, i0, shape.Tq, D, aligned);

  float4 o[R][N] = {};
  float m[R], l[R] = {};  // l: of the keys of this thread only, until the end
#pragma unroll
  for (int r = 0; r < R; r++) m[r] = LOWEST;

  for (int j0 = 0; j0 < keys; j0 += BK) {
    __syncthreads();  // nobody reads the values from before any more
    load_tile<BK, D_MAX, threads(BQ)>(kv_tile, a.k, b, h / shape.group(), j0, shape.Tk, D, aligned);
    __syncthreads();  // the keys are here

    float s[R][C] = {};  // S = Q K^T
#pragma unroll 1
    for (int d = 0; d < D_MAX; d += 4) {
      float4 k[C];
#pragma unroll
      for (int c = 0; c < C; c++) k[c] = at4(kv_tile, (x + 16 * c) * ROW + d);
#pragma unroll
      for (int r = 0; r < R; r++) {
        const float4 q = at4(q_tile, (first_row + 2 * r) * ROW + d);
#pragma unroll
        for (int c = 0; c < C; c++) s[r][c] = dot4(s[r][c], q, k[c]);
      }
    }
    __syncthreads();  // nobody reads the keys any more
    load_tile<BK, D_MAX, threads(BQ)>(kv_tile, a.v, b, h / shape.group(), j0, shape.Tk, D, aligned);

#pragma unroll
    for (int r = 0; r < R; r++) {
      const int visible = shape.visible_keys(i0 + first_row + 2 * r) - j0;
      float m_new = m[r];
#pragma unroll
      for (int c = 0; c < C; c++) {
        s[r][c] = x + 16 * c < visible ? shape.scale * s[r][c] : -INFINITY;
        m_new = fmaxf(m_new, s[r][c]);
      }
      m_new = row_max(m_new);
      const float correction = expf(m[r] - m_new);
      m[r] = m_new;
      l[r] *= correction;
#pragma unroll
      for (int n = 0; n < N; n++) {
        o[r][n] =
            make_float4(o[r][n].x * correction, o[r][n].y * correction, o[r][n].z * correction, o[r][n].w * correction);
      }
#pragma unroll
      for (int c = 0; c < C; c++) {
        const float p = expf(s[r][c] - m_new);
        l[r] += p;
        p_tile[(first_row + 2 * r) * P_ROW + x + 16 * c] = p;
      }
    }
    __syncthreads();  // the values are here, and the probabilities

#pragma unroll 1
    for (int j = 0; j < BK; j += 4) {  // O += P V
      float4 v[4][N];
#pragma unroll
      for (int n = 0; n < N; n++) {
#pragma unroll
        for (int jj = 0; jj < 4; jj++) v[jj][n] = at4(kv_tile, (j + jj) * ROW + 4 * x + 64 * n);
      }
#pragma unroll
      for (int r = 0; r < R; r++) {
        const float4 p = at4(p_tile, (first_row + 2 * r) * P_ROW + j);
#pragma unroll
        for (int n = 0; n < N; n++) {
          add4(o[r][n], p.x, v[0][n]);
          add4(o[r][n], p.y, v[1][n]);
          add4(o[r][n], p.z, v[2][n]);
          add4(o[r][n], p.w, v[3][n]);
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < R; r++) {
    const int i = i0 + first_row + 2 * r;
    const float sum = row_sum(l[r]), norm = sum == 0 ? 0 : 1 / sum;
    if (i >= shape.Tq) continue;
#pragma unroll
    for (int n = 0; n < N; n++) {
      const int d = 4 * x + 64 * n;
      const float4 y = make_float4(o[r][n].x * norm, o[r][n].y * norm, o[r][n].z * norm, o[r][n].w * norm);
      store4(a.out.row(b, h, i) + d, y, D - d, aligned);
    }
    if (x == 0) a.lse[shape.query(b, h, i)] = m[r] + logf(sum);
  }
}

template <class T, int BQ, int BK, int D_MAX>
static void launch(const AttentionForward<T>& a, cudaStream_t stream) {
  const AttentionShape& shape = a.shape;
  const int64_t blocks = (shape.Tq + BQ - 1) / BQ * shape.B * shape.H;
  const int bytes = ((BQ + BK) * (D_MAX + 4) + BQ * score_row(BK)) * sizeof(float);
  const bool aligned = rows_aligned(a.q, 4) && rows_aligned(a.k, 4) && rows_aligned(a.v, 4) && rows_aligned(a.out, 4);
  auto kernel = attend<T, BQ, BK, D_MAX>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<blocks, threads(BQ), bytes, stream>>>(a, aligned);
}

extern "C" void attention_forward_tiled(int64_t dtype, const void* q, int64_t q_batch, int64_t q_head, int64_t q_row,
                                        const void* k, int64_t k_batch, int64_t k_head, int64_t k_row, const void* v,
                                        int64_t v_batch, int64_t v_head, int64_t v_row, void* out, int64_t out_batch,
                                        int64_t out_head, int64_t out_row, float* lse, int64_t B, int64_t H,
                                        int64_t Hkv, int64_t Tq, int64_t Tk, int64_t D, int64_t causal, float scale,
                                        cudaStream_t stream) {
  const AttentionForward<void> given = {{q, q_batch, q_head, q_row},
                                        {k, k_batch, k_head, k_row},
                                        {v, v_batch, v_head, v_row},
                                        {out, out_batch, out_head, out_row},
                                        lse,
                                        {B, H, Hkv, Tq, Tk, D, causal != 0, scale}};
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    if (D <= 64) {
      launch<T, 64, 64, 64>(typed<T>(given), stream);
    } else if (D <= 128) {
      launch<T, 32, 64, 128>(typed<T>(given), stream);
    } else {
      launch<T, 32, 16, 256>(typed<T>(given), stream);
    }
  });
}
