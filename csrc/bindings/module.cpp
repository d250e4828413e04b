// The Python module: threads, the instruction set, and one bind_ function per folder of kernels.
#include <pybind11/stl.h>

#include "bindings.h"
#include "parallel.h"
#include "simd.h"

namespace minigpt {

// The instruction sets that this CPU can run, the best one first. Asked before the faster modules are imported.
static std::vector<std::string> cpu_isas() {
  std::vector<std::string> isas{"base"};
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl");
  if (v3) isas.insert(isas.begin(), "avx2");
  if (v4) isas.insert(isas.begin(), "avx512");
#endif
  return isas;
}

}  // namespace minigpt

PYBIND11_MODULE(MINIGPT_MODULE, m) {
  using namespace minigpt;
  m.attr("isa") = ISA;
#if defined(_OPENMP)
  m.attr("threading") = "OpenMP";
#else
  m.attr("threading") = "std::thread";
#endif
  m.attr("compiler") = __VERSION__;
  m.def("cpu_isas", &cpu_isas);
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads);
  m.def("set_streaming_threshold", [](int64_t floats) { return std::exchange(streaming_threshold, floats); });
  bind_attention(m);
  bind_layernorm(m);
  bind_linear(m);
  bind_machine_limits(m);
  bind_single_kernels(m);
}
