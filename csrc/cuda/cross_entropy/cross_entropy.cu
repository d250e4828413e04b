// softmax and loss in one, without ever storing the probabilities: backward computes them again from lse.
//
// One block a row. Forward reads the row once: every thread keeps the maximum m of the numbers it has seen and the sum
// l of exp(v - m), and scales l down when the maximum rises (the online softmax of attention); at the end the threads'
// pairs are brought to one maximum and added up.
//
// A vocabulary is rarely a multiple of 8 (50257), so rows begin anywhere. Each row is walked through in three parts:
// up to the first multiple of 16 bytes one by one, then by packs, then the rest one by one.
// moved: forward 4 bytes and about 15 FLOPs a number (float32), backward 8 bytes and 15 FLOPs; half of the bytes in 16
//     bits; 32 registers
// counted: forward, 16 rows, V 50257, float32: 103,740 sectors of global memory, 8,704 accesses to shared, 0 turns lost
// counted: backward, 16 rows, V 50257, float32: 207,864 sectors of global memory, no shared
// measured: not yet run on a GPU
#include "../launch.cuh"
#include "../pack.cuh"
#include "../reduce.cuh"

constexpr int THREADS = 512;

// body(i, Width<N>()) for the packs i .. i + N - 1 and the single numbers i of a row that are this thread's.
template <class T, class Body>
__device__ void each_in_row(const T* row, int64_t V, bool packed, Body body) {
  constexpr int N = 16 / sizeof(T);
  int64_t first = packed ? (-(uintptr_t)row % 16) / sizeof(T) : V;  // where the packs begin
  if (first > V) first = V;
  const int64_t last = first + (V - first) / N * N;  // where they end
  for (int64_t i = threadIdx.x; i < first; i += THREADS) body(i, Width<1>());
  for (int64_t i = first + threadIdx.x * N; i < last; i += THREADS * N) body(i, Width<N>());
  for (int64_t i = last + threadIdx.x; i < V; i += THREADS) body(i, Width<1>());
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    cross_entropy_forward_kernel(const T* logits, const int64_t* targets, float* losses, float* lse, int64_t V,
                                 int64_t ignore_index, bool packed) {
  __shared__ float slots[2][1][32];
  const T* row = logits + blockIdx.x * V;
  float m = LOWEST, l = 0;
  each_in_row(row, V, packed, [&](int64_t i, auto width) {
    constexpr int N = decltype(width)::value;
    Pack<T, N> v = *(const Pack<T, N>*)(row + i);
    float m_new = m;
    for (int k = 0; k < N; k++) m_new = fmaxf(m_new, v[k]);
    l *= expf(m - m_new);
    for (int k = 0; k < N; k++) l += expf(v[k] - m_new);
    m = m_new;
  });
  const float largest = block_max(m, slots[0]);
  const float sum = block_sum(l * expf(m - largest), slots[1]);
  if (threadIdx.x > 0) return;
  const float log_sum = sum == 0 ? NAN : logf(sum);  // 0: all are -inf, of which there is no softmax
  const int64_t target = targets[blockIdx.x];
  lse[blockIdx.x] = largest + log_sum;
  losses[blockIdx.x] = target == ignore_index ? 0 : log_sum + (largest - to_float(row[target]));
}

// dlogits = dloss * (softmax(logits) - onehot(targets)), 0 in ignored rows.
template <class T>
__global__ void __launch_bounds__(THREADS)
    cross_entropy_backward_kernel(const float* dlosses, const T* logits, const int64_t* targets, const float* lse,
                                  T* dlogits, int64_t V, int64_t ignore_index, float dloss, bool packed) {
  const T* row = logits + blockIdx.x * V;
  T* drow = dlogits + blockIdx.x * V;
  const int64_t target = targets[blockIdx.x];
  const bool ignored = target == ignore_index;
  const float row_lse = lse[blockIdx.x];
  if (dlosses) dloss *= dlosses[blockIdx.x];
  each_in_row(row, V, packed, [&](int64_t i, auto width) {
    constexpr int N = decltype(width)::value;
    Pack<T, N> v = *(const Pack<T, N>*)(row + i);
    for (int k = 0; k < N; k++) v.set(k, ignored ? 0 : dloss * (expf(v[k] - row_lse) - (i + k == target)));
    *(Pack<T, N>*)(drow + i) = v;
  });
}

extern "C" void cross_entropy_forward(int64_t dtype, const void* logits, const int64_t* targets, float* losses,
                                      float* lse, int64_t rows, int64_t V, int64_t ignore_index, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    cross_entropy_forward_kernel<T>
        <<<rows, THREADS, 0, stream>>>((const T*)logits, targets, losses, lse, V, ignore_index, true);
  });
}

// dlosses, one for each row, may be null; dloss is a factor for all. dlogits may be logits.
extern "C" void cross_entropy_backward(int64_t dtype, const float* dlosses, const void* logits, const int64_t* targets,
                                       const float* lse, void* dlogits, int64_t rows, int64_t V, int64_t ignore_index,
                                       float dloss, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    const bool packed = aligned((uintptr_t)logits - (uintptr_t)dlogits);  // both or neither begin at 16 bytes
    cross_entropy_backward_kernel<T><<<rows, THREADS, 0, stream>>>(dlosses, (const T*)logits, targets, lse, (T*)dlogits,
                                                                   V, ignore_index, dloss, packed);
  });
}
