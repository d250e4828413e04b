// gelu: one pack of 16 bytes a thread, in registers from load to store. The simplest kernel here: nothing is shared.
// moved: forward 8 bytes and about 15 FLOPs a number (float32), backward 12 bytes and 25 FLOPs; half of the bytes in 16
//     bits; up to 31 registers
// counted: forward, 64 x 768 numbers, float32: 12,288 sectors of global memory, no shared
// counted: backward, 64 x 768 numbers, float32: 18,432 sectors of global memory, no shared
// measured: not yet run on a GPU
#include "../activation.cuh"
#include "../launch.cuh"
#include "../pack.cuh"

constexpr int THREADS = 256;

template <class T, int N>
__global__ void gelu_forward_kernel(const T* x, T* y, int64_t n) {
  int64_t i = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * N;
  if (i >= n) return;
  Pack<T, N> v = load<N>(x, i, n);
  for (int k = 0; k < N; k++) v.set(k, gelu(v[k]));
  store(y, i, n, v);
}

template <class T, int N>
__global__ void gelu_backward_kernel(const T* dy, const T* x, T* dx, int64_t n) {
  int64_t i = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * N;
  if (i >= n) return;
  Pack<T, N> d = load<N>(dy, i, n), v = load<N>(x, i, n);
  for (int k = 0; k < N; k++) d.set(k, d[k] * gelu_gradient(v[k]));
  store(dx, i, n, d);
}

// y may be x.
extern "C" void gelu_forward(int64_t dtype, const void* x, void* y, int64_t n, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    with_width<T>(aligned(x, y), [&](auto width) {
      constexpr int N = decltype(width)::value;
      gelu_forward_kernel<T, N><<<blocks_of(n, THREADS * N), THREADS, 0, stream>>>((const T*)x, (T*)y, n);
    });
  });
}

// dx may be dy.
extern "C" void gelu_backward(int64_t dtype, const void* dy, const void* x, void* dx, int64_t n, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    with_width<T>(aligned(dy, x, dx), [&](auto width) {
      constexpr int N = decltype(width)::value;
      gelu_backward_kernel<T, N>
          <<<blocks_of(n, THREADS * N), THREADS, 0, stream>>>((const T*)dy, (const T*)x, (T*)dx, n);
    });
  });
}
