// linear: the forward product, the two products of the backward pass, and the sum that is the gradient of the bias.
#include "linear/linear.h"

#include "bindings.h"

namespace minigpt {

// y (M, N) = x (M, K) weight (N, K)^T + bias
static void linear_forward(const py::array& x, const py::array& weight, const py::object& bias,
                           const py::object& kernel, py::array& y, const py::object& gelu) {
  int64_t N = weight.shape(0), K = weight.shape(1), M = x.size() / K;
  Product product{M, N, K, {in(x), K, 1}, Matrix{in(weight), K, 1}.transposed(), out(y), in(bias), false, out(gelu)};
  product_function* run = pick(LINEAR, kernel);
  py::gil_scoped_release release;
  run(product);
}

// dx (M, K) = dy weight, dweight (N, K) = dy^T x, dbias (N) = the sum of dy's rows. dx and dbias may be None.
static void linear_backward(const py::array& dy, const py::array& x, const py::array& weight, const py::object& kernel,
                            bool accumulate, const py::object& dx, py::array& dweight, const py::object& dbias) {
  int64_t N = weight.shape(0), K = weight.shape(1), M = x.size() / K;
  Matrix dy_rows{in(dy), N, 1};
  Product input{M, K, N, dy_rows, {in(weight), K, 1}, out(dx)};
  Product parameter{N, K, M, dy_rows.transposed(), {in(x), K, 1}, out(dweight), nullptr, accumulate};
  float* sums = out(dbias);
  product_function* product = pick(LINEAR, kernel);
  py::gil_scoped_release release;
  if (input.c) product(input);
  product(parameter);
  if (sums) sum_rows(dy_rows.data, M, N, sums, accumulate);
}

void bind_linear(py::module_& m) {
  m.attr("linear_kernels") = names(LINEAR);
  m.def("linear_forward", &linear_forward);
  m.def("linear_backward", &linear_backward);
}

}  // namespace minigpt
