// adamw: one pass over the arrays, everything that a parameter needs in registers at once. And squared_norm, by which
// gradients are clipped.
//
// Parameters in bfloat16 or float16 are too coarse to be moved by small steps: an addition below half of their last
// digit is lost. So they have `master` weights in float32, which the step moves, with m and v in float32; the parameter
// is the master weight, rounded.
// moved: 28 bytes and about 15 FLOPs a parameter: in float32 four reads and three writes; with master weights three
//     float32 read and written, a gradient read and a parameter written; up to 40 registers
// counted: 64 x 768 parameters, float32: 43,008 sectors of global memory, no shared
// measured: not yet run on a GPU
#include "../launch.cuh"
#include "../pack.cuh"
#include "../reduce.cuh"
#include "../scratch.cuh"

constexpr int THREADS = 256;

// What of the step is the same for all parameters, worked out by the caller in float64: 1 - beta2 in float32 would have
// lost its fifth digit.
struct Step {
  float beta1, rest1;  // rest1 = 1 - beta1
  float beta2, rest2;  // rest2 = 1 - beta2
  float step_size;     // lr / (1 - beta1^step)
  float v_correction;  // 1 / (1 - beta2^step)
  float keep;          // 1 - lr weight_decay
  float eps, grad_scale;
};

// m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
// weight = weight (1 - lr weight_decay) - lr mhat / (sqrt(vhat) + eps),
// with mhat = m / (1 - beta1^step) and vhat = v / (1 - beta2^step).
// M is the type of the weights that are moved, of m and of v; P that of the gradients and of the parameters, if these
// are others.
template <int N, class P, class M>
__global__ void adamw_kernel(Step step, P* param, const P* grad, M* m, M* v, M* master, int64_t n) {
  const int64_t i = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * N;
  if (i >= n) return;
  Pack<P, N> g = load<N>(grad, i, n), rounded;
  Pack<M, N> first = load<N>(m, i, n), second = load<N>(v, i, n), weight = load<N>(master, i, n);
  for (int k = 0; k < N; k++) {
    const float scaled = g[k] * step.grad_scale;
    const float m_new = step.beta1 * first[k] + step.rest1 * scaled;
    const float v_new = step.beta2 * second[k] + step.rest2 * scaled * scaled;
    const float moved = weight[k] * step.keep - step.step_size * m_new / (sqrtf(v_new * step.v_correction) + step.eps);
    first.set(k, m_new);
    second.set(k, v_new);
    weight.set(k, moved);
    rounded.set(k, moved);
  }
  store(m, i, n, first);
  store(v, i, n, second);
  store(master, i, n, weight);
  if ((void*)param != (void*)master) store(param, i, n, rounded);
}

// The sum of squares in float64, 32 numbers a thread; then one block adds up what the blocks found, in order.
constexpr int ITEMS = 32;

__device__ inline double block_sum_double(double v) {
  __shared__ double slots[THREADS];
  slots[threadIdx.x] = v;
  __syncthreads();
  for (int distance = THREADS / 2; distance > 0; distance /= 2) {
    if (threadIdx.x < distance) slots[threadIdx.x] += slots[threadIdx.x + distance];
    __syncthreads();
  }
  return slots[0];
}

template <int N, class T>
__global__ void squared_norm_kernel(const T* x, double* partials, int64_t n) {
  double sum = 0;
  const int64_t begin = int64_t(blockIdx.x) * THREADS * ITEMS;
  for (int64_t i = begin + threadIdx.x * N; i < begin + THREADS * ITEMS && i < n; i += THREADS * N) {
    Pack<T, N> v = load<N>(x, i, n);
    for (int k = 0; k < N; k++) sum += double(v[k]) * v[k];
  }
  sum = block_sum_double(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void sum_partials_kernel(const double* partials, int64_t parts, double* total) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < parts; i += THREADS) sum += partials[i];
  sum = block_sum_double(sum);
  if (threadIdx.x == 0) *total = sum;
}

// In place in param, m, v and, where it is not null, master (float32, as are then m and v).
extern "C" void adamw(int64_t dtype, void* param, const void* grad, void* m, void* v, float* master, int64_t n,
                      float beta1, float rest1, float beta2, float rest2, float step_size, float v_correction,
                      float keep, float eps, float grad_scale, cudaStream_t stream) {
  const Step step{beta1, rest1, beta2, rest2, step_size, v_correction, keep, eps, grad_scale};
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    with_width<float>(aligned(param, grad, m, v, master), [&](auto width) {
      constexpr int N = decltype(width)::value;  // 4 numbers: 16 bytes of float32, 8 of the others
      const int64_t blocks = blocks_of(n, THREADS * N);
      if (master) {
        adamw_kernel<N>
            <<<blocks, THREADS, 0, stream>>>(step, (T*)param, (const T*)grad, (float*)m, (float*)v, master, n);
      } else {
        adamw_kernel<N><<<blocks, THREADS, 0, stream>>>(step, (T*)param, (const T*)grad, (T*)m, (T*)v, (T*)param, n);
      }
    });
  });
}

// norm: one float64, the sum of the squares of x's n numbers.
extern "C" void squared_norm(int64_t dtype, const void* x, double* norm, int64_t n, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    const int64_t parts = blocks_of(n, THREADS * ITEMS);
    Scratch<double> partials(parts, stream);
    if (!partials.data) return;
    with_width<T>(aligned(x), [&](auto width) {
      constexpr int N = decltype(width)::value;
      squared_norm_kernel<N><<<parts, THREADS, 0, stream>>>((const T*)x, partials.data, n);
    });
    sum_partials_kernel<<<1, THREADS, 0, stream>>>(partials.data, parts, norm);
  });
}
