// Mixture of experts: who goes where (router.cpp), laying tokens out expert by expert and adding up what comes back
// (dispatch.cpp), and linear layers with a weight for every expert (grouped_linear.cpp). The words are those of
// minigpt/ops/numpy_moe.py: N tokens, E experts, k of them active, C channels, F width of an expert, R = N k rows.
#pragma once
#include <cstdint>

namespace minigpt {

struct Router {
  int64_t N, E, k;
  bool sigmoid, normalize;  // how scores and gates are made
  float scale;
  int64_t groups, active_groups;
};

// bias (E) may be null.
void moe_router_forward(const Router& router, const float* logits, const float* bias, float* gates, int64_t* experts);
void moe_router_backward(const Router& router, const float* dgates, const float* logits, const int64_t* experts,
                         float* dlogits);
void router_losses_forward(const Router& router, const float* logits, const int64_t* experts, double* balance,
                           double* z);
void router_losses_backward(const Router& router, float dbalance, float dz, const float* logits, const int64_t* experts,
                            float* dlogits);

void moe_dispatch_forward(const float* x, const int64_t* experts, int64_t N, int64_t k, int64_t C, int64_t E,
                          float* rows, int64_t* place, int64_t* offsets);
void moe_dispatch_backward(const float* drows, const int64_t* place, int64_t N, int64_t k, int64_t C, float* dx);
void moe_combine_forward(const float* rows, const float* gates, const int64_t* place, int64_t N, int64_t k, int64_t C,
                         float* y);
void moe_combine_backward(const float* dy, const float* rows, const float* gates, const int64_t* place, int64_t N,
                          int64_t k, int64_t C, float* drows, float* dgates);

// x (R, C), weight (E, F, C), offsets (E + 1), y (R, F)
void grouped_linear_forward(const float* x, const float* weight, const int64_t* offsets, int64_t E, int64_t F,
                            int64_t C, float* y);
void grouped_linear_backward(const float* dy, const float* x, const float* weight, const int64_t* offsets, int64_t E,
                             int64_t F, int64_t C, bool accumulate, float* dx, float* dweight);

}  // namespace minigpt
