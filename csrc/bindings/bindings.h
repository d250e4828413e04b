// What the binding files share. A binding takes apart NumPy arrays and calls a kernel with plain pointers; it decides
// nothing. Shapes and dtypes were checked in minigpt/ops/check.py, and cpp_ops.py made arrays contiguous where a kernel
// needs it.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "heads.h"
#include "ladder.h"

namespace py = pybind11;

namespace minigpt {

// The data of an array, or nullptr for None. Only float32 arrays get here.
inline const float* in(const py::object& x) {
  return x.is_none() ? nullptr : static_cast<const float*>(py::reinterpret_borrow<py::array>(x).data());
}
inline float* out(const py::object& x) {
  return x.is_none() ? nullptr : static_cast<float*>(py::reinterpret_borrow<py::array>(x).mutable_data());
}

// (..., C) seen as rows of C numbers.
struct Rows {
  int64_t rows, C;
  explicit Rows(const py::array& x) : rows(1), C(x.shape(x.ndim() - 1)) {
    for (py::ssize_t axis = 0; axis < x.ndim() - 1; axis++) rows *= x.shape(axis);
  }
};

// (B, heads, T, D) with its strides, which NumPy counts in bytes.
template <class Float>
Heads<Float> heads(const py::array& x, Float* data) {
  const int64_t bytes = sizeof(float);
  return {data, x.strides(0) / bytes, x.strides(1) / bytes, x.strides(2) / bytes};
}
inline Heads<const float> heads_in(const py::array& x) { return heads(x, static_cast<const float*>(x.data())); }
inline Heads<float> heads_out(py::array& x) { return heads(x, static_cast<float*>(x.mutable_data())); }

// Calls a kernel without holding Python's lock: run(kernel, in(x), ..., out(y)).
template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), Arguments... arguments) {
  py::gil_scoped_release unlocked;
  kernel(arguments...);
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
  if (!name.is_none()) {
    for (const Rung<Function>& rung : ladder) {
      if (py::str(rung.name).equal(name)) return rung.run;
    }
  }
  return ladder[N - 1].run;
}

void bind_attention(py::module_& m);
void bind_layernorm(py::module_& m);
void bind_linear(py::module_& m);
void bind_machine_limits(py::module_& m);
void bind_single_kernels(py::module_& m);

}  // namespace minigpt
