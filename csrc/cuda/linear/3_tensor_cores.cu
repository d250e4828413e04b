// linear, rung 3: the tensor cores. One instruction of a warp multiplies 16 x 16 by 16 x 8 numbers.
//
// The tile of C is again 128 x 128, with steps of 64 along R. Eight warps share it, 64 x 32 each, as 4 x 4 results of
// mma, spread over the lanes' registers (see mma_m16n8k16 in ptx.cuh):
//
//            32      32      32      32                     8        8        8        8
//     64   warp 0  warp 1  warp 2  warp 3            16  c[0][0]  c[0][1]  c[0][2]  c[0][3]
//     64   warp 4  warp 5  warp 6  warp 7            16  c[1][0]  ...
//
// A tile lies in shared memory as its matrix does in global memory, so that 16 bytes are copied at a time. ldmatrix
// hands the lanes what mma wants of it, and turns it where the matrix lies the other way round. Rows are padded by 16
// bytes: the eight rows that ldmatrix reads at once begin in eight different groups of four banks, without a conflict.
// C is written as mma leaves it, two numbers a lane, eight neighbours a quad: half a sector, so each is touched twice.
// moved: as before in numbers, of 2 bytes: I J R / 32 bytes for 2 I J R FLOPs; 36 KiB of shared memory; up to 94 registers
// counted: I = J = R = 256, float16: 24,576 sectors of global memory, 4,096 accesses to shared, 0 turns lost
// takes: bfloat16, float16; needs sm_80
// measured: not yet run on a GPU
#include "linear.cuh"

constexpr int TILE = 128, DEPTH = 64, THREADS = 256;

// ROWS x COLUMNS numbers of a matrix, as they lie in memory.
template <class T, int ROWS, int COLUMNS>
struct alignas(16) Tile {
  T number[ROWS][COLUMNS + 8];

  // From row `top` and column `left` on; 0 beyond the matrix, which is (rows, columns).
  __device__ void load(const T* matrix, int64_t top, int64_t left, int64_t rows, int64_t columns) {
    const bool packed = (((uintptr_t)matrix | columns * sizeof(T)) & 15) == 0;
    for (int e = threadIdx.x; e < ROWS * COLUMNS / 8; e += THREADS) {
      const int row = e / (COLUMNS / 8), column = e % (COLUMNS / 8) * 8;
      const T* from = matrix + (top + row) * columns + left + column;
      const int64_t there = top + row < rows ? columns - left - column : 0;
      Pack<T, 8> pack;
      if (packed && there >= 8) {
        pack = *(const Pack<T, 8>*)from;
      } else {
        for (int k = 0; k < 8; k++) pack.number[k] = k < there ? from[k] : from_float<T>(0);
      }
      *(Pack<T, 8>*)&number[row][column] = pack;
    }
  }

  // 16 x 16 numbers as four 8 x 8 matrices: 0 and 1 one below the other, 2 and 3 beside them. TURNED: each transposed.
  template <bool TURNED>
  __device__ void read_columns(uint32_t (&r)[4], int row, int column) const {
    const int lane = threadIdx.x % 32;
    const T* from = &number[row + lane % 16][column + lane / 16 * 8];
    TURNED ? ldmatrix_x4_trans(r, from) : ldmatrix_x4(r, from);
  }

  // The same with 0 and 1 side by side, 2 and 3 below them.
  template <bool TURNED>
  __device__ void read_rows(uint32_t (&r)[4], int row, int column) const {
    const int lane = threadIdx.x % 32;
    const T* from = &number[row + lane % 8 + lane / 16 * 8][column + lane / 8 % 2 * 8];
    TURNED ? ldmatrix_x4_trans(r, from) : ldmatrix_x4(r, from);
  }
};

// A lies in memory as (I, R), or, where A_TURNED, as (R, I). B lies as (R, J), or, where B_TURNED, as (J, R).
template <class T, bool A_TURNED, bool B_TURNED>
__global__ void __launch_bounds__(THREADS) linear_tensor_cores_kernel(Product<T> p) {
  __shared__ Tile<T, A_TURNED ? DEPTH : TILE, A_TURNED ? TILE : DEPTH> a_tile;
  __shared__ Tile<T, B_TURNED ? TILE : DEPTH, B_TURNED ? DEPTH : TILE> b_tile;
  const int64_t tiles = (p.J + TILE - 1) / TILE, i0 = blockIdx.x / tiles * TILE, j0 = blockIdx.x % tiles * TILE;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, i_warp = warp / 4 * 64, j_warp = warp % 4 * 32;

  float c[4][4][4] = {};
  for (int64_t r0 = 0; r0 < p.R; r0 += DEPTH) {
    A_TURNED ? a_tile.load(p.a.data, r0, i0, p.R, p.I) : a_tile.load(p.a.data, i0, r0, p.I, p.R);
    B_TURNED ? b_tile.load(p.b.data, j0, r0, p.J, p.R) : b_tile.load(p.b.data, r0, j0, p.R, p.J);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < DEPTH; r += 16) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = i_warp + 16 * i;
        if constexpr (A_TURNED)
          a_tile.template read_rows<true>(a[i], r, row);
        else
          a_tile.template read_columns<false>(a[i], row, r);
      }
#pragma unroll
      for (int j = 0; j < 2; j++) {  // two neighbours of 8 columns at a time
        const int column = j_warp + 16 * j;
        if constexpr (B_TURNED)
          b_tile.template read_rows<false>(b[j], column, r);
        else
          b_tile.template read_columns<true>(b[j], r, column);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const uint32_t half_of_b[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          mma_m16n8k16<T>(c[i][j], a[i], half_of_b);
        }
      }
    }
    __syncthreads();  // before the tiles are overwritten
  }

#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {  // the rows g and g+8, two columns of each
        const float two[2] = {c[i][j][2 * half], c[i][j][2 * half + 1]};
        p.put(i0 + i_warp + 16 * i + lane / 4 + 8 * half, j0 + j_warp + 8 * j + lane % 4 * 2, two);
      }
    }
  }
}

template <class T>
static auto multiply(cudaStream_t stream) {
  return [=](Product<T> p) {
    const int64_t tiles = ceil_div(p.I, TILE) * ceil_div(p.J, TILE);
    const bool a_turned = p.a.column_stride != 1, b_turned = p.b.column_stride != 1;
    if (b_turned) {
      linear_tensor_cores_kernel<T, false, true><<<tiles, THREADS, 0, stream>>>(p);  // y = x W^T
    } else if (a_turned) {
      linear_tensor_cores_kernel<T, true, false><<<tiles, THREADS, 0, stream>>>(p);  // dW = dy^T x
    } else {
      linear_tensor_cores_kernel<T, false, false><<<tiles, THREADS, 0, stream>>>(p);  // dx = dy W
    }
  };
}

extern "C" void linear_forward_tensor_cores(int64_t dtype, const void* x, const void* weight, const void* bias, void* y,
                                            int64_t M, int64_t K, int64_t N, cudaStream_t stream) {
  by_16_bit_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    linear_forward<T>(multiply<T>(stream), x, weight, bias, y, nullptr, M, K, N);
  });
}

extern "C" void linear_backward_tensor_cores(int64_t dtype, const void* dy, const void* x, const void* weight, void* dx,
                                             void* dweight, void* dbias, int64_t M, int64_t K, int64_t N,
                                             int64_t accumulate, cudaStream_t stream) {
  by_16_bit_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    linear_backward<T>(multiply<T>(stream), dy, x, weight, dx, dweight, dbias, M, K, N, accumulate, stream);
  });
}

// pre = x W^T + bias, y = gelu(pre), while the numbers are in registers.
extern "C" void linear_gelu_forward_tensor_cores(int64_t dtype, const void* x, const void* weight, const void* bias,
                                                 void* y, void* pre, int64_t M, int64_t K, int64_t N,
                                                 cudaStream_t stream) {
  by_16_bit_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    linear_forward<T>(multiply<T>(stream), x, weight, bias, pre, y, M, K, N);
  });
}
