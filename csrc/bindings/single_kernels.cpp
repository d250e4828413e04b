// The operations that are one kernel each, not a ladder, in the order of numpy_ops.py.
#include "adamw/adamw.h"
#include "bindings.h"
#include "cross_entropy/cross_entropy.h"
#include "embedding/embedding.h"
#include "gelu/gelu.h"
#include "residual_layernorm/residual_layernorm.h"
#include "rmsnorm/rmsnorm.h"
#include "rope/rope.h"
#include "swiglu/swiglu.h"

namespace minigpt {

using In = const py::object&;   // float32 array or None
using Out = const py::object&;  // the same, written

static const int64_t* integers(const py::array& x) { return static_cast<const int64_t*>(x.data()); }  // int64 arrays

void bind_single_kernels(py::module_& m) {
  m.def("embedding_forward", [](const py::array& tokens, const py::array& wte, In wpe, int64_t position, Out x) {
    run(embedding_forward, integers(tokens), in(wte), in(wpe), position, tokens.shape(0), tokens.shape(1), wte.shape(1),
        out(x));
  });

  m.def("embedding_backward", [](const py::array& dx, const py::array& tokens, int64_t position, Out dwte, Out dwpe) {
    run(embedding_backward, in(dx), integers(tokens), position, dx.shape(0), dx.shape(1), dx.shape(2), out(dwte),
        out(dwpe));
  });

  m.def("rmsnorm_forward", [](const py::array& x, In weight, float eps, Out y, Out rstd) {
    const auto [rows, C] = Rows(x);
    run(rmsnorm_forward, in(x), in(weight), rows, C, eps, out(y), out(rstd));
  });

  m.def("rmsnorm_backward", [](In dy, const py::array& x, In weight, In rstd, bool accumulate, Out dx, Out dweight) {
    const auto [rows, C] = Rows(x);
    run(rmsnorm_backward, in(dy), in(x), in(weight), in(rstd), rows, C, accumulate, out(dx), out(dweight));
  });

  m.def("residual_layernorm_forward",
        [](const py::array& x, In residual, In weight, In bias, float eps, Out h, Out y, Out mean, Out rstd) {
          const auto [rows, C] = Rows(x);
          run(residual_layernorm_forward, in(x), in(residual), in(weight), in(bias), rows, C, eps, out(h), out(y),
              out(mean), out(rstd));
        });

  m.def("residual_layernorm_backward", [](In dh, In dy, const py::array& h, In weight, In mean, In rstd,
                                          bool accumulate, Out dx, Out dweight, Out dbias) {
    const auto [rows, C] = Rows(h);
    run(residual_layernorm_backward, in(dh), in(dy), in(h), in(weight), in(mean), in(rstd), rows, C, accumulate,
        out(dx), out(dweight), out(dbias));
  });

  m.def("gelu_forward", [](const py::array& x, Out y) { run(gelu_forward, in(x), x.size(), out(y)); });

  m.def("gelu_backward",
        [](In dy, const py::array& x, Out dx) { run(gelu_backward, in(dy), in(x), x.size(), out(dx)); });

  m.def("swiglu_forward",
        [](const py::array& gate, In up, Out y) { run(swiglu_forward, in(gate), in(up), gate.size(), out(y)); });

  m.def("swiglu_backward", [](In dy, const py::array& gate, In up, Out dgate, Out dup) {
    run(swiglu_backward, in(dy), in(gate), in(up), gate.size(), out(dgate), out(dup));
  });

  m.def("rope", [](const py::array& x, In cos, In sin, bool backwards, py::array y) {
    const RopeShape shape{x.shape(0), x.shape(1), x.shape(2), x.shape(3), backwards};
    run(rope, shape, heads_in(x), in(cos), in(sin), heads_out(y));
  });

  m.def("cross_entropy_forward",
        [](const py::array& logits, const py::array& targets, int64_t ignore_index, Out losses, Out lse) {
          const auto [rows, V] = Rows(logits);
          run(cross_entropy_forward, in(logits), integers(targets), ignore_index, rows, V, out(losses), out(lse));
        });

  m.def("cross_entropy_backward", [](float dloss, const py::array& logits, const py::array& targets, In lse,
                                     int64_t ignore_index, Out dlogits) {
    const auto [rows, V] = Rows(logits);
    run(cross_entropy_backward, dloss, in(logits), integers(targets), in(lse), ignore_index, rows, V, out(dlogits));
  });

  m.def("adamw", [](const py::array& param, In grad, Out m, Out v, int64_t step, double lr, double beta1, double beta2,
                    double eps, double weight_decay, double grad_scale) {
    const AdamW settings{step, lr, beta1, beta2, eps, weight_decay, grad_scale};
    run(adamw, settings, in(grad), param.size(), out(param), out(m), out(v));
  });

  m.def("squared_norm", [](const py::array& x) {
    const float* data = in(x);
    py::gil_scoped_release unlocked;
    return squared_norm(data, x.size());
  });
}

}  // namespace minigpt
