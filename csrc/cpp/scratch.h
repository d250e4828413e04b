// Memory for a kernel's own use. It grows to the largest size asked for and is kept from call to call: fresh pages cost
// more than arithmetic. Declare it `static thread_local`, so that two Python threads do not share one.
#pragma once
#include <cstdint>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace minigpt {

class Scratch {
 public:
  // Room for n floats, aligned to a cache line, holding anything. What was there before is lost when it grows.
  float* get(int64_t n) {
    if (n > size_) {
      release();
      size_t bytes = (n * sizeof(float) + PAGE - 1) / PAGE * PAGE;
      data_ = static_cast<float*>(::operator new(bytes, std::align_val_t{PAGE}));
#if defined(__linux__)
      madvise(data_, bytes, MADV_HUGEPAGE);
#endif
      size_ = n;
    }
    return data_;
  }
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  ~Scratch() { release(); }

 private:
  static constexpr size_t PAGE = 2 << 20;  // a huge page: one entry of the address cache for 2 MiB
  void release() {
    ::operator delete(data_, std::align_val_t{PAGE});
    data_ = nullptr;
    size_ = 0;
  }
  float* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace minigpt
