// The last step of dweight and dbias: partial sums of every column, (parts, C) in float32, become one sum a column.
//
// A block has 32 columns and 32 parts at a time, with lanes side by side on columns, so that loads are coalesced. Each
// thread adds up every 32nd part; then one thread a column adds up what the 32 found, in order.
#pragma once
#include "../launch.cuh"

template <class T>
__global__ void sum_columns_kernel(const float* partials, int64_t parts, int64_t stride, int64_t C, bool accumulate,
                                   T* sums) {
  __shared__ float tile[32][33];  // 33: the 32 numbers of a column, too, lie in different banks
  int64_t column = int64_t(blockIdx.x) * 32 + threadIdx.x;
  float sum = 0;
  if (column < C) {
    for (int64_t p = threadIdx.y; p < parts; p += 32) sum += partials[p * stride + column];
  }
  tile[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= C) return;
  for (int p = 1; p < 32; p++) sum += tile[p][threadIdx.x];
  sums[column] = from_float<T>(accumulate ? to_float(sums[column]) + sum : sum);
}

// Row p of the partial sums begins at partials + p * stride.
template <class T>
void sum_columns(const float* partials, int64_t parts, int64_t stride, int64_t C, bool accumulate, void* sums,
                 cudaStream_t stream) {
  sum_columns_kernel<T><<<ceil_div(C, 32), dim3(32, 32), 0, stream>>>(partials, parts, stride, C, accumulate, (T*)sums);
}

// How many blocks share out the rows where each writes a part. It depends on the number of rows only, so that every GPU
// gives the same bits: enough to fill one, and no more, because every part is written and read again.
inline int64_t partial_blocks(int64_t rows) { return rows < 16 * 1024 ? ceil_div(rows, 16) : 1024; }
