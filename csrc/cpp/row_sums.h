// Sums over rows, as dweight and dbias are, by several threads: the rows are cut into chunks whose number depends on
// the number of rows only, every chunk has sums of its own, and these are added up in order. So the result is the same,
// bit for bit, for any number of threads.
#pragma once
#include <algorithm>
#include <vector>

#include "parallel.h"

namespace minigpt {

constexpr int64_t MAX_CHUNKS = 32, MIN_CHUNK_ROWS = 16;

// body(begin, end, sums) adds the share of rows begin .. end-1 to sums, an array of `width` zeros; then
// result(i, total) gets the total of each of the sums.
template <class Body, class Result>
void sum_over_rows(int64_t rows, int64_t width, const Body& body, const Result& result) {
  int64_t chunk = std::max(MIN_CHUNK_ROWS, (rows + MAX_CHUNKS - 1) / MAX_CHUNKS), chunks = (rows + chunk - 1) / chunk;
  thread_local std::vector<float> scratch;
  scratch.assign(chunks * width, 0.0f);
  float* sums = scratch.data();
  parallel_for(rows, chunk, [&](int64_t begin, int64_t end) { body(begin, end, sums + begin / chunk * width); });
  for (int64_t c = 1; c < chunks; c++) {
    for (int64_t i = 0; i < width; i++) sums[i] += sums[c * width + i];
  }
  for (int64_t i = 0; i < width; i++) result(i, sums[i]);
}

}  // namespace minigpt
