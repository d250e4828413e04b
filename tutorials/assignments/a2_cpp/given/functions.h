// The functions of this assignment, as the tests call them: C functions that get pointers and sizes.
//
// Arrays lie in memory without gaps, the last axis fastest: element [i][j] of x (rows, C) is x[i * C + j]. const arrays
// are yours to read, the others yours to write, every element: they arrive filled with NaN, but for m, l and o of
// attention_absorb. Sizes are 1 or more. What they compute is said where you write them, in student/.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

extern "C" {
void layernorm_forward(const float* x, const float* weight, const float* bias, int64_t rows, int64_t C, float eps,
                       float* y, float* mean, float* rstd);
void layernorm_backward(const float* dy, const float* x, const float* weight, const float* mean, const float* rstd,
                        int64_t rows, int64_t C, float* dx, float* dweight, float* dbias);

void attention_forward(const float* q, const float* k, const float* v, int64_t heads, int64_t Tq, int64_t Tk, int64_t D,
                       int64_t causal, float* out, float* lse);
void attention_backward(const float* dout, const float* q, const float* k, const float* v, const float* out,
                        const float* lse, int64_t heads, int64_t Tq, int64_t Tk, int64_t D, int64_t causal, float* dq,
                        float* dk, float* dv);

void attention_absorb(const float* q, const float* k, const float* v, int64_t rows, int64_t keys, int64_t D,
                      int64_t diagonal, float* m, float* l, float* o);
void attention_forward_tiled(const float* q, const float* k, const float* v, int64_t heads, int64_t Tq, int64_t Tk,
                             int64_t D, int64_t causal, float* out, float* lse);
}
