// A ladder: kernels that compute the same thing, from the plainest to the fastest. The last rung is the default.
#pragma once

namespace minigpt {

template <class Function>
struct Rung {
  const char* name;
  Function* run;
};

}  // namespace minigpt
