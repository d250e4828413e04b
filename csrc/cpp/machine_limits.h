// What this machine can do at most, measured by loops that do nothing else: the lines that `minigpt bench` draws above
// the kernels. Each reports the work it did; the caller holds the clock.
#pragma once
#include <cstdint>

namespace minigpt {

// Multiply-adds on registers alone, by every thread. Returns the FLOPs done (a multiply-add is two).
double limit_fma(int64_t rounds);

// The sum of x[0 .. n-1]: every byte is read once. 4n bytes.
float limit_read(const float* x, int64_t n);

// a[i] = b[i] + s c[i]: two streams read, one written. 12n bytes. Streaming stores skip the read of a that an ordinary
// store begins with, but need `a` aligned to the vector.
void limit_triad(float* a, const float* b, const float* c, float s, int64_t n, bool streaming);

}  // namespace minigpt
