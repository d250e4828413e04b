#include "linear/linear.h"

#include "bindings.h"

namespace minigpt {

static void forward(const py::array& x, const py::array& weight, const py::object& bias, const py::object& kernel,
                    const py::object& y, const py::object& gelu) {
  const int64_t N = weight.shape(0), K = weight.shape(1), M = x.size() / K;
  run(linear_forward, pick(linear_ladder, kernel), in(x), in(weight), in(bias), M, N, K, out(y), out(gelu));
}

static void backward(const py::array& dy, const py::array& x, const py::array& weight, const py::object& kernel,
                     bool accumulate, const py::object& dx, const py::object& dweight, const py::object& dbias) {
  const int64_t N = weight.shape(0), K = weight.shape(1), M = x.size() / K;
  run(linear_backward, pick(linear_ladder, kernel), in(dy), in(x), in(weight), M, N, K, accumulate, out(dx),
      out(dweight), out(dbias));
}

void bind_linear(py::module_& m) {
  m.attr("linear_kernels") = names(linear_ladder);
  m.def("linear_forward", &forward);
  m.def("linear_backward", &backward);
}

}  // namespace minigpt
