// What the binding files share. A binding takes apart NumPy arrays and calls a kernel with plain pointers; it decides
// nothing. Shapes and dtypes were checked in minigpt/ops/check.py, and cpp_ops.py made arrays contiguous where a kernel
// needs it.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "ladder.h"

namespace py = pybind11;

namespace minigpt {

using Array = py::array_t<float>;

// The data of an array, or nullptr for None. Only float32 arrays get here.
inline const float* in(const py::object& x) {
  return x.is_none() ? nullptr : static_cast<const float*>(py::reinterpret_borrow<py::array>(x).data());
}
inline float* out(const py::object& x) {
  return x.is_none() ? nullptr : static_cast<float*>(py::reinterpret_borrow<py::array>(x).mutable_data());
}

// A ladder's names for Python, and the rung that a name (None: the last) stands for; check.py knows that there is one.
template <class Function, size_t N>
py::tuple names(const Rung<Function> (&ladder)[N]) {
  py::tuple result(N);
  for (size_t i = 0; i < N; i++) result[i] = py::str(ladder[i].name);
  return result;
}
template <class Function, size_t N>
Function* pick(const Rung<Function> (&ladder)[N], const py::object& name) {
  size_t i = N - 1;
  if (!name.is_none()) {
    for (i = 0; i < N - 1 && std::string(ladder[i].name) != py::cast<std::string>(name);) i++;
  }
  return ladder[i].run;
}

void bind_attention(py::module_& m);
void bind_machine_limits(py::module_& m);

}  // namespace minigpt
