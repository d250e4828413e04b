// The instructions that only sm_90a has: matrix products by four warps together that read shared memory while the warps
// go on (wgmma), a copy engine that fetches whole boxes of a tensor (TMA), and barriers that count bytes (mbarrier).
// There is no emulator for these. What is said here is from the PTX manual (CUDA 13.0), chapters 5.5 and 9.7.13 to 15.
#pragma once
#include <cuda.h>

#include "ptx.cuh"

// ---------------------------------------------------------------------------------------------------------------
// mbarrier: 8 bytes of shared memory. A phase ends when `count` arrivals and all the bytes expected have come; then
// the next one begins. Who waits names the parity of the phase: 0 for the first, 1, 0, 1 ... A barrier on which
// nothing has happened lets those through who wait for parity 1, as if a phase before the first had ended.

__device__ inline void mbarrier_init(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
// After all the inits, before the __syncthreads() behind which the barriers are used: the copy engine sees them too.
__device__ inline void mbarrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and makes the phase last until so many bytes have been copied.
__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ inline void mbarrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@over bra done;\n"
      "bra again;\n"
      "done:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// ---------------------------------------------------------------------------------------------------------------
// TMA: fetches the box of a tensor whose first corner is (x, y, z, w), innermost first, zeros where the tensor ends.
// `map` says where the tensor is, how large the box, and how it is swizzled in shared memory; it is an argument of the
// kernel declared const __grid_constant__. The bytes of the whole box count for `barrier`.
__device__ inline void tma_load(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

// ---------------------------------------------------------------------------------------------------------------
// wgmma

// A tile in shared memory as wgmma wants it named: rows of 128 bytes, 8 rows (1024 bytes, a multiple of which the tile
// starts at) a swizzled block, the blocks one after the other.
//   bits 0-13 address / 16;  16-29 the other stride, not used by one block of columns;  32-45 bytes from block to
//   block / 16;  62-63 the swizzle, 1: 128 bytes
__device__ inline uint64_t wgmma_tile(const void* shared) {
  return (shared_address(shared) & 0x3ffff) >> 4 | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

// Before the first wgmma that reads registers which ordinary instructions wrote, its own results among them.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

__device__ inline void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// The compiler takes wgmma for an ordinary instruction that is over when the next one starts. What goes through here
// before wgmma_fence() is not written later, and what goes through after wgmma_wait() is not read earlier.
template <int N>
__device__ inline void keep(float (&x)[N][4]) {
#pragma unroll
  for (int n = 0; n < 4 * N; n++) asm volatile("" : "+f"(x[n / 4][n % 4])::"memory");
}
template <int N>
__device__ inline void keep(uint32_t (&x)[N][4]) {
#pragma unroll
  for (int n = 0; n < 4 * N; n++) asm volatile("" : "+r"(x[n / 4][n % 4])::"memory");
}

// C = A B, or C += A B where `add`, for the four warps of a warpgroup: A is 64 x 16, 16 rows a warp, in registers as
// mma_m16n8k16 has it; C is 64 x 64, eight of its pieces side by side; B is 16 x 64 in shared memory. COLUMNS: rows in
// memory are columns of B (as for Q K^T: 64 keys, 16 of their numbers), else they are rows (P V: 16 values of 64).
#define WGMMA_M64N64K16(type)                                                                                       \
  asm volatile(                                                                                                     \
      "{\n"                                                                                                         \
      ".reg .pred add;\n"                                                                                           \
      "setp.ne.b32 add, %37, 0;\n"                                                                                  \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                                   \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
      "%23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, add, 1, 1, %38;\n"                  \
      "}"                                                                                                           \
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),    \
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),    \
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),    \
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),    \
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])                                                  \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(COLUMNS ? 0 : 1))

template <class T, bool COLUMNS>
struct Wgmma;
template <bool COLUMNS>
struct Wgmma<bfloat16, COLUMNS> {
  static __device__ void run(float (*c)[4], const uint32_t (&a)[4], uint64_t b, bool add) { WGMMA_M64N64K16("bf16"); }
};
template <bool COLUMNS>
struct Wgmma<half, COLUMNS> {
  static __device__ void run(float (*c)[4], const uint32_t (&a)[4], uint64_t b, bool add) { WGMMA_M64N64K16("f16"); }
};
template <class T, bool COLUMNS>
__device__ inline void wgmma_m64n64k16(float (*c)[4], const uint32_t (&a)[4], uint64_t b, bool add) {
  Wgmma<T, COLUMNS>::run(c, a, b, add);
}
#undef WGMMA_M64N64K16

// ---------------------------------------------------------------------------------------------------------------
// The registers of a thread, counted in eights, for all four warps of a warpgroup: given back, or taken when free.
template <int COUNT>
__device__ inline void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ inline void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
