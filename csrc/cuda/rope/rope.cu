// rope: y_i = x_i cos - x_j sin, y_j = x_j cos + x_i sin, with j = i + D/2.
//
// A thread turns a pack of pairs: it reads 16 bytes of each half before it writes either, so that y may be x.
// Neighbouring threads go along the row, then to the next head of the same position, as they lie in the packed
// projection; the heads find their cos and sin in the L1 cache.
// moved: 8 bytes and 3 FLOPs a number (float32; 4 bytes in 16 bits); 32 registers
// counted: forward, 1 head, T 64, D 64, float32: 1,536 sectors of global memory, no shared
// counted: backward, 1 head, T 64, D 64, float32: 1,536 sectors of global memory, no shared
// measured: not yet run on a GPU
#include "../heads.cuh"
#include "../launch.cuh"
#include "../pack.cuh"

template <class T, int N>
__global__ void rope_kernel(Heads<const T> x, const T* cos, const T* sin, Heads<T> y, int64_t B, int64_t H, int64_t T_,
                            int64_t D, float direction) {
  using P = Pack<T, N>;
  const int64_t half = D / 2, packs = half / N;
  const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;  // ((b * T + t) * H + h) * packs + i
  const int64_t i = index % packs, h = index / packs % H, t = index / packs / H % T_, b = index / packs / H / T_;
  if (b >= B) return;
  const T* from = x.row(b, h, t);
  T* to = y.row(b, h, t);
  P first = ((const P*)from)[i], second = ((const P*)(from + half))[i];
  P c = ((const P*)(cos + t * half))[i], s = ((const P*)(sin + t * half))[i];
  for (int k = 0; k < N; k++) {
    float a = first[k], b = second[k], sine = direction * s[k];
    first.set(k, a * c[k] - b * sine);
    second.set(k, b * c[k] + a * sine);
  }
  ((P*)to)[i] = first;
  ((P*)(to + half))[i] = second;
}

// The gradient of a rotation is the rotation back: direction is 1 or -1.
static void rope(int64_t dtype, const void* x, int64_t x_batch, int64_t x_head, int64_t x_row, const void* cos,
                 const void* sin, void* y, int64_t y_batch, int64_t y_head, int64_t y_row, int64_t B, int64_t H,
                 int64_t T_, int64_t D, float direction, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using T = decltype(number);
    const int64_t strides = x_batch | x_head | x_row | y_batch | y_head | y_row | D / 2;
    with_width<T>(aligned(x, cos, sin, y, strides * sizeof(T)), [&](auto width) {
      constexpr int N = decltype(width)::value;
      rope_kernel<T, N><<<ceil_div(B * H * T_ * (D / 2 / N), 256), 256, 0, stream>>>(
          Heads<const T>{(const T*)x, x_batch, x_head, x_row}, (const T*)cos, (const T*)sin,
          Heads<T>{(T*)y, y_batch, y_head, y_row}, B, H, T_, D, direction);
    });
  });
}

// y may be x.
extern "C" void rope_forward(int64_t dtype, const void* x, int64_t x_batch, int64_t x_head, int64_t x_row,
                             const void* cos, const void* sin, void* y, int64_t y_batch, int64_t y_head, int64_t y_row,
                             int64_t B, int64_t H, int64_t T, int64_t D, cudaStream_t stream) {
  rope(dtype, x, x_batch, x_head, x_row, cos, sin, y, y_batch, y_head, y_row, B, H, T, D, 1, stream);
}

// dx may be dy.
extern "C" void rope_backward(int64_t dtype, const void* dy, int64_t dy_batch, int64_t dy_head, int64_t dy_row,
                              const void* cos, const void* sin, void* dx, int64_t dx_batch, int64_t dx_head,
                              int64_t dx_row, int64_t B, int64_t H, int64_t T, int64_t D, cudaStream_t stream) {
  rope(dtype, dy, dy_batch, dy_head, dy_row, cos, sin, dx, dx_batch, dx_head, dx_row, B, H, T, D, -1, stream);
}
