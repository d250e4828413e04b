// layernorm: y = (x - mean) * rstd * weight + bias, row by row, with rstd = 1 / sqrt(variance + eps).
//
// The ladder: naive (the formula) -> vectorised (lanes; a row is read from memory once) -> threads (rows are shared
// out; the sums over rows in fixed chunks) -> streaming (large outputs go past the caches). All arrays are contiguous:
// x y dy dx (rows, C); weight bias dweight dbias (C); mean rstd (rows). bias may be null.
#pragma once
#include <cstdint>

#include "../ladder.h"

namespace minigpt {

using LayernormForward = void(const float* x, const float* weight, const float* bias, int64_t rows, int64_t C,
                              float eps, float* y, float* mean, float* rstd);
LayernormForward layernorm_forward_naive, layernorm_forward_vectorised, layernorm_forward_threads,
    layernorm_forward_streaming;

constexpr Rung<LayernormForward> layernorm_forward_ladder[] = {
    {"naive", layernorm_forward_naive},
    {"vectorised", layernorm_forward_vectorised},
    {"threads", layernorm_forward_threads},
    {"streaming", layernorm_forward_streaming},
};

// dweight and dbias are added to what is there where `accumulate`, else overwritten.
using LayernormBackward = void(const float* dy, const float* x, const float* weight, const float* mean,
                               const float* rstd, int64_t rows, int64_t C, bool accumulate, float* dx, float* dweight,
                               float* dbias);
LayernormBackward layernorm_backward_naive, layernorm_backward_vectorised, layernorm_backward_threads,
    layernorm_backward_streaming;

constexpr Rung<LayernormBackward> layernorm_backward_ladder[] = {
    {"naive", layernorm_backward_naive},
    {"vectorised", layernorm_backward_vectorised},
    {"threads", layernorm_backward_threads},
    {"streaming", layernorm_backward_streaming},
};

}  // namespace minigpt
