// Device memory that a launcher needs while its kernels run: taken and given back in the order of the stream, so that
// nobody waits. If there is not enough of it, `data` is null, and the error stays for cudaGetLastError.
#pragma once
#include <cstdint>

template <class T>
struct Scratch {
  T* data = nullptr;
  cudaStream_t stream;

  Scratch(int64_t n, cudaStream_t stream) : stream(stream) {
    cudaMallocAsync(reinterpret_cast<void**>(&data), n * sizeof(T), stream);
  }
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    if (data) cudaFreeAsync(data, stream);
  }
};
