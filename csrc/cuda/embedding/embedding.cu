// embedding: rows looked up in two tables and added; backward adds rows of gradients into the tables.
//
// A token that occurs twice collects two gradients. Atomic additions would make that correct but their order, and so
// the rounding, random. Instead the first row that holds a token adds up the gradients of all its rows, in order: one
// block for a row and 256 columns, whose threads look at 256 tokens at a time, and stop where they see theirs before
// their row. The looking is quadratic: of R rows of different tokens every block reads 8 R bytes of token ids, from the
// L2 cache, to add up 1024 bytes of gradients (float32). That is as much at 128 rows and 8 times as much at 1024; rows
// sorted by token first would need none of it. In a batch of nothing but one token the blocks of one row do all the
// work.
// moved: forward 12 bytes and 1 FLOP a number (float32), backward 8 to 16 bytes and 2 FLOPs; half of the bytes in 16
//     bits; up to 32 registers
// counted: forward, 64 tokens, C 768, float32: 12,672 sectors of global memory, no shared
// counted: backward, 64 tokens, C 768, float32: 23,040 sectors of global memory, 13,824 accesses to shared, 0 turns lost
// measured: not yet run on a GPU
#include "../launch.cuh"
#include "../pack.cuh"
#include "../reduce.cuh"

constexpr int THREADS = 256;

// x[b, t] = wte[tokens[b, t]] + wpe[position + t]: a pack a thread.
template <class T, int N>
__global__ void embedding_forward_kernel(const int64_t* tokens, const T* wte, const T* wpe, T* x, int64_t rows,
                                         int64_t length, int64_t C, int64_t position) {
  using P = Pack<T, N>;
  const int64_t packs = C / N, index = int64_t(blockIdx.x) * THREADS + threadIdx.x, r = index / packs;
  if (r >= rows) return;
  P v = ((const P*)(wte + tokens[r] * C))[index % packs], place = {};
  if (wpe) place = ((const P*)(wpe + (position + r % length) * C))[index % packs];
  for (int k = 0; k < N; k++) v.set(k, v[k] + place[k]);
  ((P*)x)[index] = v;
}

// dwte[v] += the sum of dx over all rows whose token is v. Block (r, c) has row r's token, and a column a thread.
template <class T>
__global__ void embedding_backward_tokens_kernel(const T* dx, const int64_t* tokens, T* dwte, int64_t rows, int64_t C) {
  __shared__ unsigned found[THREADS / 32];  // a bit for each of the tokens looked at
  const int64_t r = blockIdx.x, column = int64_t(blockIdx.y) * THREADS + threadIdx.x, token = tokens[r];
  float sum = 0;
  for (int64_t begin = 0; begin < rows; begin += THREADS) {
    const int64_t mine = begin + threadIdx.x;
    const unsigned same = __ballot_sync(ALL_LANES, mine < rows && tokens[mine] == token);
    __syncthreads();  // all have read the bits before
    if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = same;
    __syncthreads();
    for (int warp = 0; warp < THREADS / 32; warp++) {
      for (unsigned bits = found[warp]; bits; bits &= bits - 1) {
        const int64_t row = begin + 32 * warp + __ffs(bits) - 1;  // the lowest bit
        if (row < r) return;                                      // all threads: that row's block does the work
        if (column < C) sum += to_float(dx[row * C + column]);
      }
    }
  }
  if (column < C) dwte[token * C + column] = from_float<T>(to_float(dwte[token * C + column]) + sum);
}

// dwpe[position + t] += the sum of dx over the batch: a number a thread.
template <class T>
__global__ void embedding_backward_positions_kernel(const T* dx, T* dwpe, int64_t B, int64_t length, int64_t C) {
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;  // t * C + column
  if (index >= length * C) return;
  float sum = 0;
  for (int64_t b = 0; b < B; b++) sum += to_float(dx[b * length * C + index]);
  dwpe[index] = from_float<T>(to_float(dwpe[index]) + sum);
}

// tokens (B, T), wte (V, C), wpe (P, C) or null -> x (B, T, C).
extern "C" void embedding_forward(int64_t dtype, const int64_t* tokens, const void* wte, const void* wpe, void* x,
                                  int64_t B, int64_t T, int64_t C, int64_t position, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using Number = decltype(number);
    with_width<Number>(aligned(wte, wpe, x, C * sizeof(Number)), [&](auto width) {
      constexpr int N = decltype(width)::value;
      embedding_forward_kernel<Number, N><<<ceil_div(B * T * C, THREADS * N), THREADS, 0, stream>>>(
          tokens, (const Number*)wte, (const Number*)wpe, (Number*)x, B * T, T, C, position);
    });
  });
}

// dwte (V, C), dwpe (P, C) or null. All of both is written, or, where `accumulate`, added to.
extern "C" void embedding_backward(int64_t dtype, const void* dx, const int64_t* tokens, void* dwte, void* dwpe,
                                   int64_t B, int64_t T, int64_t C, int64_t V, int64_t P, int64_t position,
                                   int64_t accumulate, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    using Number = decltype(number);
    if (!accumulate) {
      cudaMemsetAsync(dwte, 0, V * C * sizeof(Number), stream);
      if (dwpe) cudaMemsetAsync(dwpe, 0, P * C * sizeof(Number), stream);
    }
    embedding_backward_tokens_kernel<Number>
        <<<dim3(B * T, ceil_div(C, THREADS)), THREADS, 0, stream>>>((const Number*)dx, tokens, (Number*)dwte, B * T, C);
    if (!dwpe) return;
    embedding_backward_positions_kernel<Number>
        <<<ceil_div(T * C, THREADS), THREADS, 0, stream>>>((const Number*)dx, (Number*)dwpe + position * C, B, T, C);
  });
}
