// swiglu: as gelu, one pack of 16 bytes a thread.
// moved: forward 12 bytes and about 10 FLOPs a number (float32), backward 20 bytes and 15 FLOPs; half of the bytes in
//     16 bits; up to 39 registers
// counted: forward, 64 x 768 numbers, float32: 18,432 sectors of global memory, no shared
// counted: backward, 64 x 768 numbers, float32: 30,720 sectors of global memory, no shared
// measured: not yet run on a GPU
#include "../activation.cuh"
#include "../launch.cuh"
#include "../pack.cuh"

constexpr int THREADS = 256;

template <class T, int N>
__global__ void swiglu_forward_kernel(const T* gate, const T* up, T* y, int64_t n) {
  int64_t i = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * N;
  if (i >= n) return;
  Pack<T, N> g = load<N>(gate, i, n), u = load<N>(up, i, n);
  for (int k = 0; k < N; k++) g.set(k, g[k] * sigmoid(g[k]) * u[k]);
  store(y, i, n, g);
}

// With s = sigmoid(gate): dup = dy gate s, dgate = dy up s (1 + gate (1 - s)).
template <class T, int N>
__global__ void swiglu_backward_kernel(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n) {
  int64_t i = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * N;
  if (i >= n) return;
  Pack<T, N> d = load<N>(dy, i, n), g = load<N>(gate, i, n), u = load<N>(up, i, n);
  for (int k = 0; k < N; k++) {
    float s = sigmoid(g[k]), dgate = d[k] * u[k] * (s * (1 + g[k] * (1 - s)));
    u.set(k, d[k] * (g[k] * s));
    g.set(k, dgate);
  }
  store(dgate, i, n, g);
  store(dup, i, n, u);
}

extern "C" void swiglu_forward(int64_t dtype, const void* gate, const void* up, void* y, int64_t n,
                               cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    with_width<T>(aligned(gate, up, y), [&](auto width) {
      constexpr int N = decltype(width)::value;
      swiglu_forward_kernel<T, N>
          <<<blocks_of(n, THREADS * N), THREADS, 0, stream>>>((const T*)gate, (const T*)up, (T*)y, n);
    });
  });
}

extern "C" void swiglu_backward(int64_t dtype, const void* dy, const void* gate, const void* up, void* dgate, void* dup,
                                int64_t n, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    with_width<T>(aligned(dy, gate, up, dgate, dup), [&](auto width) {
      constexpr int N = decltype(width)::value;
      swiglu_backward_kernel<T, N><<<blocks_of(n, THREADS * N), THREADS, 0, stream>>>(
          (const T*)dy, (const T*)gate, (const T*)up, (T*)dgate, (T*)dup, n);
    });
  });
}
