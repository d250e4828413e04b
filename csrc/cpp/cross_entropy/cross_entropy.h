// cross_entropy: losses[r] = lse[r] - logits[r, targets[r]] with lse = log(sum(exp(logits))) of the row; 0 where the
// target is `ignore_index`. logits (rows, V), targets losses lse (rows).
#pragma once
#include <cstdint>

namespace minigpt {

void cross_entropy_forward(const float* logits, const int64_t* targets, int64_t ignore_index, int64_t rows, int64_t V,
                           float* losses, float* lse);

// dlogits = dloss * (softmax(logits) - onehot(targets)). dlogits may be logits.
void cross_entropy_backward(float dloss, const float* logits, const int64_t* targets, const float* lse,
                            int64_t ignore_index, int64_t rows, int64_t V, float* dlogits);

}  // namespace minigpt
