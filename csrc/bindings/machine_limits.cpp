// The machine's limits, for minigpt/bench.
#include "machine_limits.h"

#include "bindings.h"

namespace minigpt {

using Flat = py::array_t<float, py::array::c_style>;

void bind_machine_limits(py::module_& m) {
  m.def("limit_fma", &limit_fma, py::call_guard<py::gil_scoped_release>());
  m.def("limit_read", [](const Flat& x) {
    py::gil_scoped_release release;
    return limit_read(x.data(), x.size());
  });
  m.def("limit_triad", [](Flat a, const Flat& b, const Flat& c, float s, bool streaming) {
    if (b.size() != a.size() || c.size() != a.size()) throw py::value_error("limit_triad: a, b and c differ in size");
    float* target = a.mutable_data();
    if (streaming && reinterpret_cast<uintptr_t>(target) % 64) throw py::value_error("limit_triad: a is not aligned");
    py::gil_scoped_release release;
    limit_triad(target, b.data(), c.data(), s, a.size(), streaming);
  });
}

}  // namespace minigpt
