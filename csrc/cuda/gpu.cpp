// What Python needs of the CUDA runtime beside the launchers: is there a GPU, memory on it, copies, errors. Plain C
// functions for ctypes, in the library minigpt/_cuda.so; errors are the runtime's own words, null means none.
#include <cuda_runtime_api.h>

static const char* words(cudaError_t error) {
  cudaGetLastError();  // the runtime would repeat it otherwise
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

extern "C" {

// The architectures that the library was built for: setup.py writes them here.
const char* gpu_architectures() { return MINIGPT_CUDA_ARCHS; }

// How many GPUs; where there is no driver, or too old a one, *problem says so.
int gpu_count(const char** problem) {
  int n = 0;
  *problem = words(cudaGetDeviceCount(&n));
  return *problem ? 0 : n;
}

const char* gpu_describe(int device, char* name, int name_bytes, int* capability) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error == cudaSuccess) {
    *capability = 10 * properties.major + properties.minor;
    int i = 0;
    for (; properties.name[i] && i < name_bytes - 1; i++) name[i] = properties.name[i];
    name[i] = 0;
  }
  return words(error);
}

const char* gpu_use(int device) { return words(cudaSetDevice(device)); }
const char* gpu_allocate(void** memory, size_t bytes) { return words(cudaMalloc(memory, bytes)); }
const char* gpu_free(void* memory) { return words(cudaFree(memory)); }
const char* gpu_copy(void* to, const void* from, size_t bytes) {
  return words(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
}
// What went wrong since the last call of this function, with launches above all.
const char* gpu_last_error() { return words(cudaGetLastError()); }
const char* gpu_synchronize() { return words(cudaDeviceSynchronize()); }
}
