// What the binding files share. A binding takes apart NumPy arrays and calls a kernel with plain pointers; it decides
// nothing. Shapes and dtypes were checked in minigpt/ops/check.py, and cpp_ops.py made arrays contiguous where a kernel
// needs it.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

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

}  // namespace minigpt
