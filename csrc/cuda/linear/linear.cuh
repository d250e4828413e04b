// linear: y = x W^T + bias, with x (M, K), weight (N, K), y (M, N). The ladder: naive (a thread per number) -> tiled
// (tiles in shared memory, a register tile per thread) -> tensor_cores (the products of tiles by mma; 16-bit numbers).
//
// Forward and backward are three matrix products, C (I, J) = A (I, R) B (R, J), which differ in how the factors lie in
// memory. A rung is a way to compute a `Product`:
//
//                     C            A            B          summed over
//     forward         y (M, N)     x            W^T        K
//     backward       dx (M, K)     dy           W          N
//                    dW (N, K)     dy^T         x          M
#pragma once
#include "../activation.cuh"
#include "../launch.cuh"
#include "../pack.cuh"

template <class T>
struct Matrix {
  const T* data;
  int64_t row_stride, column_stride;  // one of them is 1

  __device__ float operator()(int64_t row, int64_t column) const {
    return to_float(data[row * row_stride + column * column_stride]);
  }
  __host__ __device__ Matrix transposed() const { return {data, column_stride, row_stride}; }
};

template <class T>
Matrix<T> rows_of(const void* x, int64_t columns) {
  return {(const T*)x, columns, 1};
}

template <class T>
struct Product {
  Matrix<T> a, b;
  int64_t I, J, R;
  T* c;             // (I, J)
  bool accumulate;  // onto what c holds
  const T* bias;    // (J), or null
  T* activated;     // gelu(c), or null

  // The columns j .. j + N - 1 of row i, j a multiple of N: together where all rows begin at such multiples.
  template <int N>
  __device__ void put(int64_t i, int64_t j, const float (&sums)[N]) const {
    if (i >= I || j >= J) return;
    if (J % N == 0) return put_pack(i, j, sums);
    for (int k = 0; k < N && j + k < J; k++) put_pack<1>(i, j + k, {sums[k]});
  }

  template <int N>
  __device__ void put_pack(int64_t i, int64_t j, const float (&sums)[N]) const {
    using P = Pack<T, N>;
    P result = {}, active = {};
    if (accumulate) result = *(const P*)(c + i * J + j);
    for (int k = 0; k < N; k++) {
      result.set(k, sums[k] + (bias ? to_float(bias[j + k]) : 0) + (accumulate ? result[k] : 0));
      if (activated) active.set(k, gelu(result[k]));
    }
    *(P*)(c + i * J + j) = result;
    if (activated) *(P*)(activated + i * J + j) = active;
  }
};

// dbias = sum over rows of dy: a block has 32 columns, each of its 32 warps every 32nd row.
template <class T>
__global__ void linear_dbias_kernel(const T* dy, T* dbias, int64_t M, int64_t N, bool accumulate) {
  __shared__ float sums[32][32];
  const int64_t j = int64_t(blockIdx.x) * 32 + threadIdx.x;
  float sum = 0;
  for (int64_t i = threadIdx.y; i < M && j < N; i += 32) sum += to_float(dy[i * N + j]);
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || j >= N) return;
  sum = accumulate ? to_float(dbias[j]) : 0;
  for (int warp = 0; warp < 32; warp++) sum += sums[warp][threadIdx.x];
  dbias[j] = from_float<T>(sum);
}

// multiply(product) computes a Product. y_gelu is null but for linear_gelu.
template <class T, class Multiply>
void linear_forward(Multiply multiply, const void* x, const void* weight, const void* bias, void* y, void* y_gelu,
                    int64_t M, int64_t K, int64_t N) {
  multiply(Product<T>{rows_of<T>(x, K), rows_of<T>(weight, K).transposed(), M, N, K, (T*)y, false, (const T*)bias,
                      (T*)y_gelu});
}

// dx and dbias may be null.
template <class T, class Multiply>
void linear_backward(Multiply multiply, const void* dy, const void* x, const void* weight, void* dx, void* dweight,
                     void* dbias, int64_t M, int64_t K, int64_t N, bool accumulate, cudaStream_t stream) {
  if (dx) multiply(Product<T>{rows_of<T>(dy, N), rows_of<T>(weight, K), M, K, N, (T*)dx});
  multiply(Product<T>{rows_of<T>(dy, N).transposed(), rows_of<T>(x, K), N, K, M, (T*)dweight, accumulate});
  if (dbias) {
    linear_dbias_kernel<T><<<ceil_div(N, 32), dim3(32, 32), 0, stream>>>((const T*)dy, (T*)dbias, M, N, accumulate);
  }
}
