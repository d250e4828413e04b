// linear, rung 2: tiles in shared memory, and in registers.
//
// A block computes a tile of 128 x 128 numbers of C and walks along R in steps of 16: its 256 threads bring 128 x 16
// numbers of A and 16 x 128 of B into shared memory, wait for each other, and multiply. So a number comes from global
// memory once for 128 results. Shared memory would be the next limit; therefore a thread computes 8 x 8 results, in
// registers, and reads 16 numbers from shared memory for 64 multiply-adds:
//
//                 tx .. tx+3    64+tx .. +3
//   ty .. ty+3      4 x 4          4 x 4         its rows and columns are two groups of four, each one float4. Threads
//   64+ty .. +3     4 x 4          4 x 4         side by side (tx) read numbers side by side of B: no bank conflict;
//                                                and the same of A, which is a broadcast.
// A tile that lies the other way round in memory is turned as it is written, at the price of two turns instead of one.
// C is written 16 bytes at a time where its rows allow: every sector once.
// moved: each of the (I / 128) (J / 128) tiles reads 128 R numbers of A and 128 R of B, 4 bytes each: I J R / 16 bytes
//     (float32) for 2 I J R FLOPs; 16.5 KiB of shared memory; 128 registers
// counted: I = J = R = 256, float32: 40,960 sectors of global memory, 40,960 accesses to shared, 8,192 turns lost
// measured: not yet run on a GPU
#include "linear.cuh"

constexpr int TILE = 128, DEPTH = 16, THREADS = 256;
constexpr int PITCH = TILE + 4;  // from row to row of a tile: other banks, and still a multiple of 16 bytes

// tile[r][i] = m(r0 + r, i0 + i), and 0 beyond R and I. Threads side by side read what lies side by side.
template <class T>
__device__ void load_tile(float (&tile)[DEPTH][PITCH], Matrix<T> m, int64_t r0, int64_t i0, int64_t R, int64_t I) {
  const bool along_i = m.column_stride == 1;
  for (int e = threadIdx.x; e < TILE * DEPTH; e += THREADS) {
    const int r = along_i ? e / TILE : e % DEPTH, i = along_i ? e % TILE : e / DEPTH;
    tile[r][i] = r0 + r < R && i0 + i < I ? m(r0 + r, i0 + i) : 0;
  }
}

// v = the eight numbers of a row of a tile that are a thread's.
__device__ inline void load_eight(float (&v)[8], const float* row) {
  const float4 first = *(const float4*)row, second = *(const float4*)(row + TILE / 2);
  v[0] = first.x, v[1] = first.y, v[2] = first.z, v[3] = first.w;
  v[4] = second.x, v[5] = second.y, v[6] = second.z, v[7] = second.w;
}

template <class T>
__global__ void __launch_bounds__(THREADS, 2) linear_tiled_kernel(Product<T> p) {
  alignas(16) __shared__ float a[DEPTH][PITCH];  // A transposed: a thread's rows lie side by side
  alignas(16) __shared__ float b[DEPTH][PITCH];
  const int64_t tiles = (p.J + TILE - 1) / TILE, i0 = blockIdx.x / tiles * TILE, j0 = blockIdx.x % tiles * TILE;
  const int ty = threadIdx.x / 16 * 4, tx = threadIdx.x % 16 * 4;

  float c[8][2][4] = {};
  for (int64_t r0 = 0; r0 < p.R; r0 += DEPTH) {
    load_tile(a, p.a.transposed(), r0, i0, p.R, p.I);
    load_tile(b, p.b, r0, j0, p.R, p.J);
    __syncthreads();
    for (int r = 0; r < DEPTH; r++) {
      float rows[8], columns[8];
      load_eight(rows, &a[r][ty]);
      load_eight(columns, &b[r][tx]);
#pragma unroll
      for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) c[i][j / 4][j % 4] += rows[i] * columns[j];
      }
    }
    __syncthreads();  // before the tiles are overwritten
  }

#pragma unroll
  for (int i = 0; i < 8; i++) {
#pragma unroll
    for (int j = 0; j < 2; j++) p.put(i0 + ty + i % 4 + i / 4 * (TILE / 2), j0 + tx + j * (TILE / 2), c[i][j]);
  }
}

template <class T>
static auto multiply(cudaStream_t stream) {
  return [=](Product<T> p) {
    const int64_t tiles = ceil_div(p.I, TILE) * ceil_div(p.J, TILE);
    linear_tiled_kernel<T><<<tiles, THREADS, 0, stream>>>(p);
  };
}

extern "C" void linear_forward_tiled(int64_t dtype, const void* x, const void* weight, const void* bias, void* y,
                                     int64_t M, int64_t K, int64_t N, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    linear_forward<T>(multiply<T>(stream), x, weight, bias, y, nullptr, M, K, N);
  });
}

extern "C" void linear_backward_tiled(int64_t dtype, const void* dy, const void* x, const void* weight, void* dx,
                                      void* dweight, void* dbias, int64_t M, int64_t K, int64_t N, int64_t accumulate,
                                      cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    linear_backward<T>(multiply<T>(stream), dy, x, weight, dx, dweight, dbias, M, K, N, accumulate, stream);
  });
}

// pre = x W^T + bias, y = gelu(pre), while the numbers are in registers.
extern "C" void linear_gelu_forward_tiled(int64_t dtype, const void* x, const void* weight, const void* bias, void* y,
                                          void* pre, int64_t M, int64_t K, int64_t N, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    linear_forward<T>(multiply<T>(stream), x, weight, bias, pre, y, M, K, N);
  });
}
