// One row, shared out among the threads of a block (or of one warp) and kept in their registers, so that it comes from
// memory once, however often it is looked at.
//
//   pack     0  1  2 ... | B  B+1 ...   | 2B ...          B = blockDim.x, a pack is 16 bytes
//   thread   0  1  2 ... | 0  1  ...    | 0  ...          neighbours read neighbours: coalesced
//   held        [0]      |     [1]      |   [2]  ...      HELD of them, unrolled, because registers have no index;
//                                                         the rest of longer rows is read again (from the L2 cache)
#pragma once
#include "../launch.cuh"
#include "../pack.cuh"
#include "../reduce.cuh"

// body(i, h) for each of this thread's packs i. It is the h-th one held, or, with h = -1, one of the rest.
template <int HELD, class Body>
__device__ void each_pack(int packs, Body body) {
#pragma unroll
  for (int h = 0; h < HELD; h++) {
    int i = threadIdx.x + h * blockDim.x;
    if (i < packs) body(i, h);
  }
  for (int i = threadIdx.x + HELD * blockDim.x; i < packs; i += blockDim.x) body(i, -1);
}

template <class T, int N, int HELD>
struct Row {
  const Pack<T, N>* from;
  Pack<T, N> held[HELD];

  // load(i) gives pack i, and leaves it in x.
  template <class Load>
  __device__ Row(const T* x, int packs, Load load) : from((const Pack<T, N>*)x) {
    each_pack<HELD>(packs, [&](int i, int h) {
      Pack<T, N> pack = load(i);
      if (h >= 0) held[h] = pack;
    });
  }

  __device__ Row(const T* x, int packs) : Row(x, packs, [x](int i) { return ((const Pack<T, N>*)x)[i]; }) {}

  __device__ Pack<T, N> operator()(int i, int h) const { return h >= 0 ? held[h] : from[i]; }
};

constexpr int MAX_THREADS = 512;

// How many packs a thread holds: 32 numbers forward; 16 of x and of dy backward, where as many of dweight and dbias are
// held, too. Fewer where a pack is one number and costs the registers of an address.
template <int N>
constexpr int FORWARD_HELD = N == 1 ? 8 : 32 / N;
template <int N>
constexpr int BACKWARD_HELD = N == 1 ? 8 : 16 / N;

// As many whole warps as it takes to give every thread `each` of n items, but no more than MAX_THREADS.
inline int64_t threads_for(int64_t n, int64_t each) {
  int64_t threads = 32 * ceil_div(n, 32 * each);
  return threads < MAX_THREADS ? threads : MAX_THREADS;
}

// The block of a forward kernel: where one warp holds a row, there are four rows to a block.
template <int N>
dim3 forward_block(int64_t C) {
  int64_t threads = threads_for(C / N, FORWARD_HELD<N>);
  return dim3(threads, threads == 32 ? 4 : 1);
}
