// embedding: x[b, t] = wte[tokens[b, t]] + wpe[position + t].
// tokens (B, T), wte (V, C), wpe (P, C) or null, x (B, T, C).
#pragma once
#include <cstdint>

namespace minigpt {

void embedding_forward(const int64_t* tokens, const float* wte, const float* wpe, int64_t position, int64_t B,
                       int64_t T, int64_t C, float* x);

// Adds to dwte (V, C) and, unless it is null, dwpe (P, C).
void embedding_backward(const float* dx, const int64_t* tokens, int64_t position, int64_t B, int64_t T, int64_t C,
                        float* dwte, float* dwpe);

}  // namespace minigpt
