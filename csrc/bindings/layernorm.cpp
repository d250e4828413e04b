#include "layernorm/layernorm.h"

#include "bindings.h"

namespace minigpt {

static void forward(const py::array& x, const py::object& weight, const py::object& bias, float eps,
                    const py::object& kernel, const py::object& y, const py::object& mean, const py::object& rstd) {
  const auto [rows, C] = Rows(x);
  run(pick(layernorm_forward_ladder, kernel), in(x), in(weight), in(bias), rows, C, eps, out(y), out(mean), out(rstd));
}

static void backward(const py::object& dy, const py::array& x, const py::object& weight, const py::object& mean,
                     const py::object& rstd, const py::object& kernel, bool accumulate, const py::object& dx,
                     const py::object& dweight, const py::object& dbias) {
  const auto [rows, C] = Rows(x);
  run(pick(layernorm_backward_ladder, kernel), in(dy), in(x), in(weight), in(mean), in(rstd), rows, C, accumulate,
      out(dx), out(dweight), out(dbias));
}

void bind_layernorm(py::module_& m) {
  m.attr("layernorm_forward_kernels") = names(layernorm_forward_ladder);
  m.attr("layernorm_backward_kernels") = names(layernorm_backward_ladder);
  m.def("layernorm_forward", &forward);
  m.def("layernorm_backward", &backward);
}

}  // namespace minigpt
