#include "attention/attention.h"

#include "bindings.h"

namespace minigpt {

static AttentionShape shape_of(const py::array& q, const py::array& k, bool causal, float scale) {
  return {q.shape(0), q.shape(1), k.shape(1), q.shape(2), k.shape(2), q.shape(3), causal, scale};
}

static void forward(const py::array& q, const py::array& k, const py::array& v, bool causal, float scale,
                    const py::object& kernel, py::array out, py::array lse) {
  AttentionForward* run = pick(attention_forward_ladder, kernel);
  const AttentionShape shape = shape_of(q, k, causal, scale);
  const auto q_in = heads_in(q), k_in = heads_in(k), v_in = heads_in(v);
  const auto out_out = heads_out(out);
  float* lse_out = static_cast<float*>(lse.mutable_data());
  py::gil_scoped_release release;
  run(shape, q_in, k_in, v_in, out_out, lse_out);
}

static void backward(const py::array& dout, const py::array& q, const py::array& k, const py::array& v,
                     const py::array& out, const py::array& lse, bool causal, float scale, const py::object& kernel,
                     py::array dq, py::array dk, py::array dv) {
  AttentionBackward* run = pick(attention_backward_ladder, kernel);
  const AttentionShape shape = shape_of(q, k, causal, scale);
  const auto dout_in = heads_in(dout), q_in = heads_in(q), k_in = heads_in(k), v_in = heads_in(v),
             out_in = heads_in(out);
  const float* lse_in = static_cast<const float*>(lse.data());
  const auto dq_out = heads_out(dq), dk_out = heads_out(dk), dv_out = heads_out(dv);
  py::gil_scoped_release release;
  run(shape, dout_in, q_in, k_in, v_in, out_in, lse_in, dq_out, dk_out, dv_out);
}

void bind_attention(py::module_& m) {
  m.attr("attention_forward_kernels") = names(attention_forward_ladder);
  m.attr("attention_backward_kernels") = names(attention_backward_ladder);
  m.def("attention_forward", &forward);
  m.def("attention_backward", &backward);
}

}  // namespace minigpt
