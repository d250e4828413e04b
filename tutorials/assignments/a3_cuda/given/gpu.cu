// What on_gpu.py needs of CUDA beside your kernels. All return 0, or CUDA's words about what went wrong.
#include <cuda_runtime.h>

static const char* words(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

extern "C" const char* gpu_allocate(void** there, size_t bytes) { return words(cudaMalloc(there, bytes)); }
extern "C" const char* gpu_copy(void* to, const void* from, size_t bytes) {
  return words(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
}
extern "C" const char* gpu_free(void* there) { return words(cudaFree(there)); }
extern "C" const char* gpu_wait() {
  const cudaError_t of_launch = cudaGetLastError();
  return words(of_launch == cudaSuccess ? cudaDeviceSynchronize() : of_launch);
}
