// A (B, heads, T, D) array whose last stride is 1. Heads are usually views of a packed (B, T, 3C) projection.
#pragma once
#include <cstdint>

namespace minigpt {

template <class Float>
struct Heads {
  Float* data;
  int64_t batch_stride, head_stride, row_stride;

  Float* row(int64_t b, int64_t h, int64_t t) const {
    return data + b * batch_stride + h * head_stride + t * row_stride;
  }
};

}  // namespace minigpt
