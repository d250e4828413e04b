// layernorm backward, rung 3: one pass with partial sums.
//
// x and dy are read once, 16 bytes an access, and stay in registers between the sums over the row and dx. What all rows
// share is added up in registers, too, by blocks that take many rows each (partials.cuh, the kernel), and a tiny second
// kernel adds up what the blocks found, in a fixed order: deterministic without reading anything twice.
// moved: 12 bytes and 19 FLOPs a number (float32; 6 bytes in 16 bits), and 16 bytes for each of at most 1024 blocks and
//     column; up to 112 registers
// counted: 64 rows, C 768, float32: 35,008 sectors of global memory, 3,792 accesses to shared, 0 turns lost
// measured: not yet run on a GPU
#include "partials.cuh"

extern "C" void layernorm_backward_partials(int64_t dtype, const void* dy, const void* x, const void* weight,
                                            const float* mean, const float* rstd, void* dx, void* dweight, void* dbias,
                                            int64_t rows, int64_t C, int64_t accumulate, cudaStream_t stream) {
  by_dtype(dtype, [&](auto number) {
    layernorm_backward_partials<decltype(number), false>(nullptr, dy, x, weight, mean, rstd, dx, dweight, dbias, rows,
                                                         C, accumulate, stream);
  });
}
