// linear, rung 1: a thread per number of the result, which is a dot product as long as R.
//
// Every number of A and B is fetched for every result that it takes part in, from the caches where these help.
// Neighbouring threads have neighbouring columns of C: where these lie side by side in B (dx, dW) their loads are
// coalesced; in the forward product they are rows of the weight, K numbers apart.
// moved: 8 I J R bytes (float32) through the caches for 2 I J R FLOPs; 32 registers
// counted: I = J = R = 256, float32: 17,309,696 sectors of global memory, no shared
// measured: not yet run on a GPU
#include "linear.cuh"

template <class T>
__global__ void linear_naive_kernel(Product<T> p) {
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, i = index / p.J, j = index % p.J;
  if (i >= p.I) return;
  float sum = 0;
  for (int64_t r = 0; r < p.R; r++) sum += p.a(i, r) * p.b(r, j);
  p.template put<1>(i, j, {sum});
}

template <class T>
static auto multiply(cudaStream_t stream) {
  return [=](Product<T> p) { linear_naive_kernel<T><<<ceil_div(p.I * p.J, 256), 256, 0, stream>>>(p); };
}

extern "C" void linear_forward_naive(int64_t dtype, const void* x, const void* weight, const void* bias, void* y,
                                     int64_t M, int64_t K, int64_t N, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    linear_forward<T>(multiply<T>(stream), x, weight, bias, y, nullptr, M, K, N);
  });
}

extern "C" void linear_backward_naive(int64_t dtype, const void* dy, const void* x, const void* weight, void* dx,
                                      void* dweight, void* dbias, int64_t M, int64_t K, int64_t N, int64_t accumulate,
                                      cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    linear_backward<T>(multiply<T>(stream), dy, x, weight, dx, dweight, dbias, M, K, N, accumulate, stream);
  });
}
