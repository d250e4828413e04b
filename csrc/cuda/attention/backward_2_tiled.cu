// The gradients tile by tile, in float32. A block owns 64 rows and walks over tiles of 32 others; the products of a
// tile are computed from shared memory, 4 x 4 numbers a thread, so that every number read serves four multiply-adds
// where the rung before had one. The two kernels are mirror images, only own and other change places:
//   dq      own: 64 queries, q and dout    other: 32 keys, k and v         dS = P * (dP - delta),  dQ += dS K
//   dk, dv  own: 64 keys, k and v          other: 32 queries, q and dout   all of it transposed,   dK += dS^T Q ...
//
//                 other        32 wide: thread x (0..7) has the columns x, x+8, x+16, x+24
//               +-------+
//       own  64 | P, dS |      64 high: thread y (0..15) has the rows y, y+16, y+32, y+48
//               +-------+
//
// The rows come through shared memory in slices of 32 columns, whatever D is, so that any GPU has room for them; the
// gradients stay in registers until the end. Rows of a slice are 36 floats apart, and those of P and dS 40: the eight
// rows, or the four, that are read at once then lie in different banks.
//
// takes: float32, bfloat16, float16; D up to 256
// moved: a pair of tiles reads the slices of all rows for the scores, and those of the others once more: 896 D bytes for
//     dq and 1024 D for dk and dv, of float32, from the L2 cache; 14 D FLOPs a pair, 14 to 16 a byte
// shared memory: 37 KB for dq, 47 KB for dk and dv; 23 and 28 KB for D over 128. Registers: 140 to 254
// counted: 1 causal head, T 256, D 64: 88,768 sectors of global memory, 94,720 accesses to shared, 0 turns lost
// measured: not yet run on a GPU
#include "../scratch.cuh"
#include "backward.cuh"
#include "four.cuh"

constexpr int THREADS = 128, OTHER = 32, SLICE = 32;
using SliceRow = float[SLICE + 4];
using ScoreRow = float[OTHER + 8];

__device__ inline int thread_x() { return threadIdx.x % 8; }
__device__ inline int thread_y() { return threadIdx.x / 8; }
__device__ inline float4 at4(const float* x) { return *reinterpret_cast<const float4*>(x); }

// Copies the columns from d0 on, of `rows` rows from t0 on; zeros from row `end` and column D on.
template <class T>
__device__ void load_slice(SliceRow* slice, int rows, Heads<const T> x, int64_t b, int64_t h, int64_t t0, int64_t end,
                           int64_t d0, int64_t D) {
  const int column = threadIdx.x % 32;
  for (int r = threadIdx.x / 32; r < rows; r += THREADS / 32) {
    slice[r][column] = t0 + r < end && d0 + column < D ? to_float(x.row(b, h, t0 + r)[d0 + column]) : 0.0f;
  }
}

// c += A B^T, over one slice: the rows of both are read along their columns.
template <int R>
__device__ void multiply_transposed(const SliceRow* a, const SliceRow* b, float (&c)[R][4]) {
#pragma unroll 1
  for (int d = 0; d < SLICE; d += 4) {
    float4 bj[4];
#pragma unroll
    for (int j = 0; j < 4; j++) bj[j] = at4(&b[thread_x() + 8 * j][d]);
#pragma unroll
    for (int r = 0; r < R; r++) {
      const float4 ar = at4(&a[thread_y() + 16 * r][d]);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        c[r][j] += ar.x * bj[j].x;
        c[r][j] += ar.y * bj[j].y;
        c[r][j] += ar.z * bj[j].z;
        c[r][j] += ar.w * bj[j].w;
      }
    }
  }
}

// c += A B, for one slice of the columns of B: thread x has four of them, side by side.
template <int R>
__device__ void multiply(const ScoreRow* a, const SliceRow* b, float (&c)[R][4]) {
#pragma unroll 1
  for (int j = 0; j < OTHER; j += 4) {
    float4 bj[4];
#pragma unroll
    for (int n = 0; n < 4; n++) bj[n] = at4(&b[j + n][4 * thread_x()]);
#pragma unroll
    for (int r = 0; r < R; r++) {
      const float4 ar = at4(&a[thread_y() + 16 * r][j]);
      const float along[4] = {ar.x, ar.y, ar.z, ar.w};
#pragma unroll
      for (int n = 0; n < 4; n++) {
        c[r][0] += along[n] * bj[n].x;
        c[r][1] += along[n] * bj[n].y;
        c[r][2] += along[n] * bj[n].z;
        c[r][3] += along[n] * bj[n].w;
      }
    }
  }
}

// Writes the rows that a block owns, held in the registers of its threads, slice by slice.
template <class T, int R, int SLICES>
__device__ void store_rows(const float (&x)[SLICES][R][4], float scale, Heads<T> to, int64_t b, int64_t h, int64_t t0,
                           int64_t end, int D, bool aligned) {
#pragma unroll
  for (int r = 0; r < R; r++) {
    const int64_t t = t0 + thread_y() + 16 * r;
    if (t >= end) break;
#pragma unroll
    for (int n = 0; n < SLICES; n++) {
      const float (&four)[4] = x[n][r];
      const int d = SLICE * n + 4 * thread_x();
      store4(to.row(b, h, t) + d, make_float4(scale * four[0], scale * four[1], scale * four[2], scale * four[3]),
             D - d, aligned);
    }
  }
}

// SLICES cover D; R rows a thread, so that a block owns 16 R. A block is one of tile * B H + head.
template <class T, int SLICES, int R>
__global__ __launch_bounds__(THREADS, 2) void dq_tiled(AttentionGradients<T> a, const QueryTerms* terms, bool aligned) {
  constexpr int OWN = 16 * R;
  __shared__ SliceRow q[OWN], dout[OWN], k[OTHER], v[OTHER];
  __shared__ ScoreRow ds[OWN];
  const AttentionShape& shape = a.shape;
  const int heads = shape.B * shape.H, head = blockIdx.x % heads;
  const int64_t b = head / shape.H, h = head % shape.H, hkv = h / shape.group();
  const int64_t i0 = int64_t(blockIdx.x / heads) * OWN, last = i0 + OWN < shape.Tq ? i0 + OWN - 1 : shape.Tq - 1;
  const int64_t keys = shape.visible_keys(last);
  const float scale2 = LOG2E * shape.scale;
  terms += head * padded_queries(shape.Tq) + i0;

  float dq[SLICES][R][4] = {};
  for (int64_t j0 = 0; j0 < keys; j0 += OTHER) {
    float s[R][4] = {}, dp[R][4] = {};
    for (int d0 = 0; d0 < shape.D; d0 += SLICE) {
      __syncthreads();  // nobody reads the slices from before any more
      load_slice(q, OWN, a.q, b, h, i0, shape.Tq, d0, shape.D);
      load_slice(dout, OWN, a.dout, b, h, i0, shape.Tq, d0, shape.D);
      load_slice(k, OTHER, a.k, b, hkv, j0, shape.Tk, d0, shape.D);
      load_slice(v, OTHER, a.v, b, hkv, j0, shape.Tk, d0, shape.D);
      __syncthreads();                   // the slices are here
      multiply_transposed(q, k, s);      // S = Q K^T, without the scale
      multiply_transposed(dout, v, dp);  // dP = dO V^T
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int row = thread_y() + 16 * r;
      const QueryTerms of_i = terms[row];
      const int64_t visible = shape.visible_keys(i0 + row) - j0;
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int column = thread_x() + 8 * c;
        const float p = column < visible ? exp2f(scale2 * s[r][c] - of_i.lse2) : 0.0f;  // P = exp(S - lse)
        ds[row][column] = p * (dp[r][c] - of_i.delta);                                  // dS = P * (dP - delta)
      }
    }
#pragma unroll
    for (int n = 0; n < SLICES; n++) {
      __syncthreads();  // nobody reads the slice from before any more
      load_slice(k, OTHER, a.k, b, hkv, j0, shape.Tk, SLICE * n, shape.D);
      __syncthreads();         // the slice is here, and so is dS
      multiply(ds, k, dq[n]);  // dQ += dS K
    }
  }
  store_rows(dq, shape.scale, a.dq, b, h, i0, shape.Tq, shape.D, aligned);
}

// A block is one of tile * B Hkv + head. P and dS are transposed here: a row for each key that the block owns.
template <class T, int SLICES, int R>
__global__ __launch_bounds__(THREADS, 2) void dk_dv_tiled(AttentionGradients<T> a, const QueryTerms* terms,
                                                          bool aligned) {
  constexpr int OWN = 16 * R;
  __shared__ SliceRow k[OWN], v[OWN], q[OTHER], dout[OTHER];
  __shared__ ScoreRow p[OWN], ds[OWN];
  const AttentionShape& shape = a.shape;
  const int heads = shape.B * shape.Hkv, head = blockIdx.x % heads;
  const int64_t b = head / shape.Hkv, hkv = head % shape.Hkv, j0 = int64_t(blockIdx.x / heads) * OWN;
  const float scale2 = LOG2E * shape.scale;

  float dk[SLICES][R][4] = {}, dv[SLICES][R][4] = {};
  for (int64_t h = hkv * shape.group(); h < (hkv + 1) * shape.group(); h++) {
    for (int64_t i0 = shape.first_query(j0) / OTHER * OTHER; i0 < shape.Tq; i0 += OTHER) {
      float s[R][4] = {}, dp[R][4] = {};
      for (int d0 = 0; d0 < shape.D; d0 += SLICE) {
        __syncthreads();  // nobody reads the slices from before any more
        load_slice(k, OWN, a.k, b, hkv, j0, shape.Tk, d0, shape.D);
        load_slice(v, OWN, a.v, b, hkv, j0, shape.Tk, d0, shape.D);
        load_slice(q, OTHER, a.q, b, h, i0, shape.Tq, d0, shape.D);
        load_slice(dout, OTHER, a.dout, b, h, i0, shape.Tq, d0, shape.D);
        __syncthreads();                   // the slices are here
        multiply_transposed(k, q, s);      // S^T = K Q^T, without the scale
        multiply_transposed(v, dout, dp);  // dP^T = V dO^T
      }
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int column = thread_x() + 8 * c;
        const QueryTerms of_i = terms[(b * shape.H + h) * padded_queries(shape.Tq) + i0 + column];
        // a query past the end is all 0, but 0 times an infinite key is NaN: it sees nothing
        const int64_t visible = i0 + column < shape.Tq ? shape.visible_keys(i0 + column) - j0 : 0;
#pragma unroll
        for (int r = 0; r < R; r++) {
          const int row = thread_y() + 16 * r;
          p[row][column] = row < visible ? exp2f(scale2 * s[r][c] - of_i.lse2) : 0.0f;  // P = exp(S - lse)
          ds[row][column] = p[row][column] * (dp[r][c] - of_i.delta);                   // dS = P * (dP - delta)
        }
      }
#pragma unroll
      for (int n = 0; n < SLICES; n++) {
        __syncthreads();  // nobody reads the slices from before any more
        load_slice(q, OTHER, a.q, b, h, i0, shape.Tq, SLICE * n, shape.D);
        load_slice(dout, OTHER, a.dout, b, h, i0, shape.Tq, SLICE * n, shape.D);
        __syncthreads();           // the slices are here, and so are P and dS
        multiply(p, dout, dv[n]);  // dV += P^T dO
        multiply(ds, q, dk[n]);    // dK += dS^T Q
      }
    }
  }
  store_rows(dk, shape.scale, a.dk, b, hkv, j0, shape.Tk, shape.D, aligned);
  store_rows(dv, 1.0f, a.dv, b, hkv, j0, shape.Tk, shape.D, aligned);
}

template <class T, int SLICES, int R>
static void launch(const AttentionGradients<T>& a, cudaStream_t stream) {
  constexpr int OWN = 16 * R;
  const AttentionShape& shape = a.shape;
  const Scratch<QueryTerms> terms(shape.B * shape.H * padded_queries(shape.Tq), stream);
  if (!terms.data) return;
  compute_query_terms(a, terms.data, stream);
  const bool aligned = rows_aligned(a.dq, 4) && rows_aligned(a.dk, 4) && rows_aligned(a.dv, 4);
  const int64_t of_queries = (shape.Tq + OWN - 1) / OWN * shape.B * shape.H;
  const int64_t of_keys = (shape.Tk + OWN - 1) / OWN * shape.B * shape.Hkv;
  dq_tiled<T, SLICES, R><<<of_queries, THREADS, 0, stream>>>(a, terms.data, aligned);
  dk_dv_tiled<T, SLICES, R><<<of_keys, THREADS, 0, stream>>>(a, terms.data, aligned);
}

extern "C" void attention_backward_tiled(int64_t dtype, const void* dout, int64_t dout_batch, int64_t dout_head,
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
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    if (D <= 64) {
      launch<T, 2, 4>(typed<T>(a), stream);
    } else if (D <= 128) {
      launch<T, 4, 4>(typed<T>(a), stream);
    } else {
      launch<T, 8, 2>(typed<T>(a), stream);
    }
  });
}
