// What a .cu file sees when g++ or clang++ compiles it for the CPU (-include cuda_on_cpu.h): CUDA's keywords as macros,
// its built-in variables, vectors and functions, and the part of the runtime API that launchers use. Nothing here is
// needed in a kernel's own source, which stays ordinary CUDA.
//
// Two things are no C++ and are rewritten first (minigpt/emulator), line for line:
//     kernel<<<grid, block, smem, stream>>>(a, b);   one to four things between the brackets
//  -> emulator::launch("kernel", [=](auto... args) { kernel(args...); }, grid, block, smem, stream)(a, b);
//     extern __shared__ float4 tile[];
//  -> static float4* const tile = static_cast<float4*>(emulator::dynamic_shared());
// `__shared__` is `static`: blocks run one after another, so one copy is enough.
#pragma once
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>

#define MINIGPT_EMULATED 1
#define __CUDACC__ 1
#define __global__ __attribute__((noinline))  // a function of its own, in whose lines an empty loop is found too
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static __attribute__((aligned(128)))  // so that bank 0 begins each array, on every compiler
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__  // nothing: the C++ library writes __attribute__((__noinline__))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#if defined(__SANITIZE_THREAD__)
#define EMULATOR_CHECKED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EMULATOR_CHECKED 1
#endif
#endif
#if defined(EMULATOR_CHECKED) && defined(__clang__) && !defined(__APPLE__)
asm(".set memcpy, emulator_memcpy");  // clang copies structs by memcpy: one that tells the checks
#endif
#define EMULATOR_UNSEEN __attribute__((no_sanitize_thread))  // a function whose own accesses are not the kernel's

// ------------------------------------------------------------------------------------------------ vectors and indices

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#define EMULATOR_VECTORS(T, name, align1, align2, align4)    \
  struct align1 name##1 { T x; };                            \
  struct align2 name##2 { T x, y; };                         \
  struct name##3 { T x, y, z; };                             \
  struct align4 name##4 { T x, y, z, w; };                   \
  inline name##1 make_##name##1(T x) { return {x}; }         \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATOR_VECTORS(char, char, , alignas(2), alignas(4))
EMULATOR_VECTORS(unsigned char, uchar, , alignas(2), alignas(4))
EMULATOR_VECTORS(short, short, , alignas(4), alignas(8))
EMULATOR_VECTORS(unsigned short, ushort, , alignas(4), alignas(8))
EMULATOR_VECTORS(int, int, , alignas(8), alignas(16))
EMULATOR_VECTORS(float, float, , alignas(8), alignas(16))
EMULATOR_VECTORS(long long, longlong, , alignas(16), alignas(16))
EMULATOR_VECTORS(double, double, , alignas(16), alignas(16))
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }

// A thread's own indices never change while it runs, so it may see them as constants; the runtime, which defines them,
// changes them whenever it switches to another thread.
#ifdef EMULATOR_RUNTIME
#define EMULATOR_INDEX extern __attribute__((visibility("hidden")))
#else
#define EMULATOR_INDEX extern __attribute__((visibility("hidden"))) const
#endif
EMULATOR_INDEX uint3 threadIdx, blockIdx;
EMULATOR_INDEX dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ---------------------------------------------------------------------------------------------- the runtime, see .cpp

typedef struct emulator_stream* cudaStream_t;
typedef struct emulator_event* cudaEvent_t;

namespace emulator {

// Where in the kernel's source something was called. As a default argument it is the place of the caller, so a function
// that hands on (`Where where = Where()`) names the line of the kernel and not its own.
struct Where {
  const char* file;
  int line;
  constexpr Where(const char* file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line) {}
};

// One launch: `run(call)` is the kernel with its arguments; bytes [call, call + call_bytes) hold those.
struct Launch {
  const char* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  void (*run)(const void* call);
  const void* call;
  size_t call_bytes;
  bool checked;  // compiled with the compiler's reports of reads and writes
  Where where;
};
void run(const Launch&);

void barrier(Where where);                                      // __syncthreads
void warp_barrier(uint32_t mask, Where where);                  // __syncwarp
int barrier_reduce(int predicate, int operation, Where where);  // __syncthreads_count 0, _and 1, _or 2
uint32_t active_mask();                                         // lanes of this warp that have not returned
void* dynamic_shared();
void launch_bounds(unsigned threads, Where where = Where());  // __launch_bounds__; the rewriter puts it in the kernel
void fence();                                                 // __threadfence, __threadfence_system
[[noreturn]] void trap(const char* what, Where where);        // ends the launch
void saw_atomic(const void* address, size_t bytes, Where where);  // the checks see an atomic access as one

// Follows every declaration of a __shared__ array (the rewriter puts it there), so that the checks know it by name.
void shared_array(const char* name, void* address, size_t bytes, size_t element, const size_t* extents, int dimensions);
template <class Array>
void shared_array(const char* name, Array& array) {
#ifdef EMULATOR_CHECKED
  static constexpr size_t extents[] = {std::extent_v<Array, 1>, std::extent_v<Array, 2>, std::extent_v<Array, 3>};
  shared_array(name, &array, sizeof array, sizeof(std::remove_all_extents_t<Array>), extents,
               static_cast<int>(std::rank_v<Array>));
#endif
}

// Asynchronous copies to shared memory (cp.async): `bytes` are copied, of which those from `valid` on are zeros.
void copy_async(void* to_shared, const void* from_global, int bytes, int valid, Where where);
void copy_async_commit(Where where);
void copy_async_wait(int groups_still_flying, Where where);  // -1: everything, committed or not

// Tensor cores. ldmatrix: n (1, 2, 4) 8 x 8 matrices of 16-bit numbers, lane i gives the address of row i % 8 of matrix
// i / 8. mma: d(16x8) = a(16x16) b(16x8) + c, fragments laid out as PTX has them.
enum Number { BFLOAT16, FLOAT16 };
void load_matrices(uint32_t* out, int n, bool transposed, const void* row, Where where);
void mma_m16n8k16(Number, float* d, const uint32_t* a, const uint32_t* b, const float* c, Where where);

#ifdef EMULATOR_CHECKED
constexpr bool CHECKED = true;
#else
constexpr bool CHECKED = false;
#endif

template <class Body>
struct Launcher {
  Body body;
  Launch launch;
  template <class... Args>
  void operator()(Args... args) {
    struct Call {
      Body body;
      std::tuple<Args...> args;
    } call{body, std::tuple<Args...>(args...)};
    launch.run = [](const void* p) {
      const Call& call = *static_cast<const Call*>(p);
      std::apply(call.body, call.args);
    };
    launch.call = &call;
    launch.call_bytes = sizeof call;
    run(launch);
  }
};
template <class Body>
Launcher<Body> launch(const char* kernel, Body body, dim3 grid, dim3 block, size_t shared_bytes = 0,
                      cudaStream_t = nullptr, Where where = Where()) {
  return {body, {kernel, grid, block, shared_bytes, nullptr, nullptr, 0, CHECKED, where}};
}

// What lanes say to each other. Values travel as 8 bytes.
enum Direction { FROM, UP, DOWN, ACROSS };
enum Vote { BALLOT, ALL, ANY };
enum Reduction { ADD, MIN, MAX, AND, OR, XOR };
uint64_t shuffle(Direction, uint32_t mask, uint64_t value, int lane_or_delta, int width, Where where);
uint32_t vote(Vote, uint32_t mask, int predicate, Where where);
uint32_t match_any(uint32_t mask, uint64_t value, Where where);
int64_t reduce(Reduction, uint32_t mask, int64_t value, Where where);

template <class T>
T shuffle_as(Direction direction, uint32_t mask, T value, int lane_or_delta, int width, Where where) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  bits = shuffle(direction, mask, bits, lane_or_delta, width, where);
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
using Same = std::enable_if_t<true, T>;  // keeps a parameter from being deduced: atomicAdd(&a_float, 1)

template <class T, class Change>
EMULATOR_UNSEEN T atomically(T* address, Where where, Change change) {
#ifdef EMULATOR_CHECKED
  saw_atomic(address, sizeof(T), where);
#endif
  T old = *address;
  *address = change(old);
  return old;
}

}  // namespace emulator

// ------------------------------------------------------------------------------------------- barriers, warps, atomics

#define EMULATOR_WHERE emulator::Where where = emulator::Where()

inline void __syncthreads(EMULATOR_WHERE) { emulator::barrier(where); }
inline int __syncthreads_count(int p, EMULATOR_WHERE) { return emulator::barrier_reduce(p, 0, where); }
inline int __syncthreads_and(int p, EMULATOR_WHERE) { return emulator::barrier_reduce(p, 1, where); }
inline int __syncthreads_or(int p, EMULATOR_WHERE) { return emulator::barrier_reduce(p, 2, where); }
inline void __syncwarp(uint32_t mask = 0xffffffffu, EMULATOR_WHERE) { emulator::warp_barrier(mask, where); }
inline void __threadfence_block() {}  // says nothing to other blocks, and is no barrier
inline void __threadfence() { emulator::fence(); }
inline void __threadfence_system() { emulator::fence(); }
inline void __trap(EMULATOR_WHERE) { emulator::trap("__trap() was called", where); }

template <class T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, EMULATOR_WHERE) {
  return emulator::shuffle_as(emulator::FROM, mask, value, lane, width, where);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, EMULATOR_WHERE) {
  return emulator::shuffle_as(emulator::UP, mask, value, static_cast<int>(delta), width, where);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, EMULATOR_WHERE) {
  return emulator::shuffle_as(emulator::DOWN, mask, value, static_cast<int>(delta), width, where);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32, EMULATOR_WHERE) {
  return emulator::shuffle_as(emulator::ACROSS, mask, value, lanes, width, where);
}
inline uint32_t __ballot_sync(uint32_t mask, int p, EMULATOR_WHERE) {
  return emulator::vote(emulator::BALLOT, mask, p, where);
}
inline int __all_sync(uint32_t mask, int p, EMULATOR_WHERE) {
  return static_cast<int>(emulator::vote(emulator::ALL, mask, p, where));
}
inline int __any_sync(uint32_t mask, int p, EMULATOR_WHERE) {
  return static_cast<int>(emulator::vote(emulator::ANY, mask, p, where));
}
inline uint32_t __activemask() { return emulator::active_mask(); }
template <class T>
uint32_t __match_any_sync(uint32_t mask, T value, EMULATOR_WHERE) {
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  return emulator::match_any(mask, bits, where);
}
#define EMULATOR_REDUCE(name, operation)                                              \
  template <class T>                                                                  \
  T name(uint32_t mask, T value, EMULATOR_WHERE) {                                    \
    return static_cast<T>(emulator::reduce(emulator::operation, mask, value, where)); \
  }
EMULATOR_REDUCE(__reduce_add_sync, ADD)
EMULATOR_REDUCE(__reduce_min_sync, MIN)
EMULATOR_REDUCE(__reduce_max_sync, MAX)
EMULATOR_REDUCE(__reduce_and_sync, AND)
EMULATOR_REDUCE(__reduce_or_sync, OR)
EMULATOR_REDUCE(__reduce_xor_sync, XOR)

#define EMULATOR_ATOMIC(name, result)                                                    \
  template <class T>                                                                     \
  T name(T* address, emulator::Same<T> value, EMULATOR_WHERE) {                          \
    return emulator::atomically(address, where, [value](T old) -> T { return result; }); \
  }
EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicSub, old - value)
EMULATOR_ATOMIC(atomicExch, (static_cast<void>(old), value))
EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
EMULATOR_ATOMIC(atomicMax, value > old ? value : old)
EMULATOR_ATOMIC(atomicAnd, old& value)
EMULATOR_ATOMIC(atomicOr, old | value)
EMULATOR_ATOMIC(atomicXor, old ^ value)
EMULATOR_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
EMULATOR_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
template <class T>
T atomicCAS(T* address, emulator::Same<T> compare, emulator::Same<T> value, EMULATOR_WHERE) {
  return emulator::atomically(address, where, [=](T old) { return old == compare ? value : old; });
}

// ------------------------------------------------------------------------------------------------------------- numbers
// Fast approximations of the GPU are the exact functions here. Macros where glibc has declared the name already.

namespace emulator {
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline float divide(float a, float b) { return a / b; }
inline float saturate(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // NaN gives 0, as on the GPU
}  // namespace emulator
#define rsqrtf emulator::rsqrt
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __fdividef emulator::divide
#define __frsqrt_rn emulator::rsqrt
#define __fsqrt_rn sqrtf
#define __saturatef emulator::saturate
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline int __float2int_rn(float x) { return static_cast<int>(nearbyintf(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
inline int __float2int_ru(float x) { return static_cast<int>(ceilf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline int __float_as_int(float x) { return emulator::bits_as<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator::bits_as<unsigned>(x); }
inline float __int_as_float(int x) { return emulator::bits_as<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bits_as<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __mul24(int a, int b) { return a * b; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }

template <class A, class B>
constexpr std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>> max(A a, B b) {
  if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmax(a, b);
  return static_cast<std::common_type_t<A, B>>(a) < static_cast<std::common_type_t<A, B>>(b) ? b : a;
}
template <class A, class B>
constexpr std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>> min(A a, B b) {
  if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmin(a, b);
  return static_cast<std::common_type_t<A, B>>(b) < static_cast<std::common_type_t<A, B>>(a) ? b : a;
}

// Loads and stores with a hint for the cache: the hint means nothing here.
#define EMULATOR_LOAD(name) \
  template <class T>        \
  T name(const T* p) {      \
    return *p;              \
  }
#define EMULATOR_STORE(name)                 \
  template <class T>                         \
  void name(T* p, emulator::Same<T> value) { \
    *p = value;                              \
  }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stwt)

// ----------------------------------------------------------------------------------------------------- the runtime API

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

extern "C" {
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
}
namespace emulator {
cudaError_t allocate(void** pointer, size_t bytes, Where where, bool managed = false);
bool fits(size_t symbol, size_t offset, size_t bytes, Where where);  // a copy to or from a symbol of so many bytes
cudaError_t release(void* pointer, Where where);
cudaError_t copy(void* to, const void* from, size_t bytes, Where where, cudaMemcpyKind kind = cudaMemcpyDefault);
cudaError_t set(void* pointer, int value, size_t bytes, Where where);
cudaError_t allow_dynamic_shared(int bytes);
}  // namespace emulator

template <class T>
cudaError_t cudaMalloc(T** pointer, size_t bytes, EMULATOR_WHERE) {
  return emulator::allocate(reinterpret_cast<void**>(pointer), bytes, where);
}
template <class T>
cudaError_t cudaMallocAsync(T** pointer, size_t bytes, cudaStream_t, EMULATOR_WHERE) {
  return emulator::allocate(reinterpret_cast<void**>(pointer), bytes, where);
}
inline cudaError_t cudaFree(void* pointer, EMULATOR_WHERE) { return emulator::release(pointer, where); }
inline cudaError_t cudaFreeAsync(void* pointer, cudaStream_t, EMULATOR_WHERE) {
  return emulator::release(pointer, where);
}
inline cudaError_t cudaMemset(void* pointer, int value, size_t bytes, EMULATOR_WHERE) {
  return emulator::set(pointer, value, bytes, where);
}
inline cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t = nullptr, EMULATOR_WHERE) {
  return emulator::set(pointer, value, bytes, where);
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, EMULATOR_WHERE) {
  return emulator::copy(to, from, bytes, where, kind);
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t = nullptr, EMULATOR_WHERE) {
  return emulator::copy(to, from, bytes, where, kind);
}
// Managed memory is written by the CPU too, which is not watched: all of it counts as written, with NaN.
constexpr unsigned cudaMemAttachGlobal = 1, cudaMemAttachHost = 2;
template <class T>
cudaError_t cudaMallocManaged(T** pointer, size_t bytes, unsigned = cudaMemAttachGlobal, EMULATOR_WHERE) {
  cudaError_t error = emulator::allocate(reinterpret_cast<void**>(pointer), bytes, where, true);
  return error != cudaSuccess ? error : emulator::set(*pointer, 0xff, bytes, where);
}
// A symbol is a __constant__ or __device__ variable: an ordinary one here, whose size the compiler knows.
template <class T>
cudaError_t cudaMemcpyToSymbol(const T& symbol, const void* from, size_t bytes, size_t offset = 0,
                               cudaMemcpyKind = cudaMemcpyHostToDevice, EMULATOR_WHERE) {
  if (!emulator::fits(sizeof symbol, offset, bytes, where)) return cudaErrorInvalidValue;
  return emulator::copy(const_cast<char*>(reinterpret_cast<const char*>(&symbol)) + offset, from, bytes, where);
}
template <class T>
cudaError_t cudaMemcpyFromSymbol(void* to, const T& symbol, size_t bytes, size_t offset = 0,
                                 cudaMemcpyKind = cudaMemcpyDeviceToHost, EMULATOR_WHERE) {
  if (!emulator::fits(sizeof symbol, offset, bytes, where)) return cudaErrorInvalidValue;
  return emulator::copy(to, reinterpret_cast<const char*>(&symbol) + offset, bytes, where);
}
template <class T>
cudaError_t cudaGetSymbolAddress(void** pointer, T& symbol) {
  return *pointer = &symbol, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute attribute, int value) {
  return attribute == cudaFuncAttributeMaxDynamicSharedMemorySize ? emulator::allow_dynamic_shared(value) : cudaSuccess;
}
struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount, warpSize, maxThreadsPerBlock;
  size_t sharedMemPerBlock;
};
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  std::strcpy(properties->name, "the emulator");
  int shared = 0;
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlock, device);
  properties->sharedMemPerBlock = static_cast<size_t>(shared);
  cudaDeviceGetAttribute(&properties->multiProcessorCount, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&properties->warpSize, cudaDevAttrWarpSize, device);
  cudaDeviceGetAttribute(&properties->maxThreadsPerBlock, cudaDevAttrMaxThreadsPerBlock, device);
  cudaDeviceGetAttribute(&properties->major, cudaDevAttrComputeCapabilityMajor, device);
  return cudaDeviceGetAttribute(&properties->minor, cudaDevAttrComputeCapabilityMinor, device);
}
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaPeekAtLastError(); }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaPeekAtLastError(); }
// Events are there so that files which time themselves compile; a time taken here would say nothing about a GPU: NaN.
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = nullptr, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t = nullptr) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
  return *ms = __builtin_nanf(""), cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
