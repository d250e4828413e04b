// The Python module, and nothing else: a binding takes apart NumPy arrays and calls a kernel with plain pointers. It
// decides nothing: shapes and dtypes were checked in minigpt/ops/check.py, and cpp_ops.py made arrays contiguous where a
// kernel needs it. All bindings are in one file because pybind11's headers take seconds to compile.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "adamw/adamw.h"
#include "attention/attention.h"
#include "cross_entropy/cross_entropy.h"
#include "embedding/embedding.h"
#include "gelu/gelu.h"
#include "heads.h"
#include "ladder.h"
#include "layernorm/layernorm.h"
#include "linear/linear.h"
#include "machine_limits.h"
#include "moe/moe.h"
#include "parallel.h"
#include "residual_layernorm/residual_layernorm.h"
#include "rmsnorm/rmsnorm.h"
#include "rope/rope.h"
#include "simd.h"
#include "swiglu/swiglu.h"

namespace py = pybind11;

namespace minigpt {

using In = const py::object&;   // float32 array or None
using Out = const py::object&;  // the same, written

// The data of an array, or nullptr for None. Only float32 arrays get here.
static const float* in(const py::object& x) {
  return x.is_none() ? nullptr : static_cast<const float*>(py::reinterpret_borrow<py::array>(x).data());
}
static float* out(const py::object& x) {
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
static Heads<const float> heads_in(const py::array& x) { return heads(x, static_cast<const float*>(x.data())); }
static Heads<float> heads_out(py::array& x) { return heads(x, static_cast<float*>(x.mutable_data())); }

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

static const int64_t* integers(const py::array& x) { return static_cast<const int64_t*>(x.data()); }  // int64 arrays

static void bind_layernorm(py::module_& m) {
  m.attr("layernorm_forward_kernels") = names(layernorm_forward_ladder);
  m.attr("layernorm_backward_kernels") = names(layernorm_backward_ladder);

  m.def("layernorm_forward",
        [](const py::array& x, In weight, In bias, float eps, const py::object& kernel, Out y, Out mean, Out rstd) {
          const auto [rows, C] = Rows(x);
          run(pick(layernorm_forward_ladder, kernel), in(x), in(weight), in(bias), rows, C, eps, out(y), out(mean),
              out(rstd));
        });

  m.def("layernorm_backward", [](In dy, const py::array& x, In weight, In mean, In rstd, const py::object& kernel,
                                 bool accumulate, Out dx, Out dweight, Out dbias) {
    const auto [rows, C] = Rows(x);
    run(pick(layernorm_backward_ladder, kernel), in(dy), in(x), in(weight), in(mean), in(rstd), rows, C, accumulate,
        out(dx), out(dweight), out(dbias));
  });
}

static void bind_linear(py::module_& m) {
  m.attr("linear_kernels") = names(linear_ladder);

  m.def("linear_forward",
        [](const py::array& x, const py::array& weight, In bias, const py::object& kernel, Out y, Out gelu) {
          const int64_t N = weight.shape(0), K = weight.shape(1), M = x.size() / K;
          run(linear_forward, pick(linear_ladder, kernel), in(x), in(weight), in(bias), M, N, K, out(y), out(gelu));
        });

  m.def("linear_backward", [](const py::array& dy, const py::array& x, const py::array& weight,
                              const py::object& kernel, bool accumulate, Out dx, Out dweight, Out dbias) {
    const int64_t N = weight.shape(0), K = weight.shape(1), M = x.size() / K;
    run(linear_backward, pick(linear_ladder, kernel), in(dy), in(x), in(weight), M, N, K, accumulate, out(dx),
        out(dweight), out(dbias));
  });
}

static AttentionShape shape_of(const py::array& q, const py::array& k, bool causal, float scale) {
  return {q.shape(0), q.shape(1), k.shape(1), q.shape(2), k.shape(2), q.shape(3), causal, scale};
}

static void bind_attention(py::module_& m) {
  m.attr("attention_forward_kernels") = names(attention_forward_ladder);
  m.attr("attention_backward_kernels") = names(attention_backward_ladder);

  m.def("attention_forward", [](const py::array& q, const py::array& k, const py::array& v, bool causal, float scale,
                                const py::object& kernel, py::array out, py::array lse) {
    AttentionForward* run = pick(attention_forward_ladder, kernel);
    const AttentionShape shape = shape_of(q, k, causal, scale);
    const auto q_in = heads_in(q), k_in = heads_in(k), v_in = heads_in(v);
    const auto out_out = heads_out(out);
    float* lse_out = static_cast<float*>(lse.mutable_data());
    py::gil_scoped_release release;
    run(shape, q_in, k_in, v_in, out_out, lse_out);
  });

  m.def("attention_backward", [](const py::array& dout, const py::array& q, const py::array& k, const py::array& v,
                                 const py::array& out, const py::array& lse, bool causal, float scale,
                                 const py::object& kernel, py::array dq, py::array dk, py::array dv) {
    AttentionBackward* run = pick(attention_backward_ladder, kernel);
    const AttentionShape shape = shape_of(q, k, causal, scale);
    const auto dout_in = heads_in(dout), q_in = heads_in(q), k_in = heads_in(k), v_in = heads_in(v),
               out_in = heads_in(out);
    const float* lse_in = static_cast<const float*>(lse.data());
    const auto dq_out = heads_out(dq), dk_out = heads_out(dk), dv_out = heads_out(dv);
    py::gil_scoped_release release;
    run(shape, dout_in, q_in, k_in, v_in, out_in, lse_in, dq_out, dk_out, dv_out);
  });
}

// The operations that are one kernel each, in the order of numpy_ops.py.
static void bind_single_kernels(py::module_& m) {
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

static int64_t* integers_out(py::array& x) { return static_cast<int64_t*>(x.mutable_data()); }

static Router router_of(const py::array& logits, int64_t k, bool sigmoid, bool normalize, float scale, int64_t groups,
                        int64_t active_groups) {
  return {logits.shape(0), logits.shape(1), k, sigmoid, normalize, scale, groups, active_groups};
}

static void bind_moe(py::module_& m) {
  m.def("moe_router_forward", [](const py::array& logits, int64_t k, In bias, bool sigmoid, bool normalize, float scale,
                                 int64_t groups, int64_t active_groups, Out gates, py::array experts) {
    run(moe_router_forward, router_of(logits, k, sigmoid, normalize, scale, groups, active_groups), in(logits),
        in(bias), out(gates), integers_out(experts));
  });

  m.def("moe_router_backward", [](In dgates, const py::array& logits, const py::array& experts, bool sigmoid,
                                  bool normalize, float scale, Out dlogits) {
    run(moe_router_backward, router_of(logits, experts.shape(1), sigmoid, normalize, scale, 1, 1), in(dgates),
        in(logits), integers(experts), out(dlogits));
  });

  m.def("router_losses_forward", [](const py::array& logits, const py::array& experts, bool sigmoid) {
    double balance, z;
    run(router_losses_forward, router_of(logits, experts.shape(1), sigmoid, false, 1, 1, 1), in(logits),
        integers(experts), &balance, &z);
    return std::pair(balance, z);
  });

  m.def("router_losses_backward",
        [](float dbalance, float dz, const py::array& logits, const py::array& experts, bool sigmoid, Out dlogits) {
          run(router_losses_backward, router_of(logits, experts.shape(1), sigmoid, false, 1, 1, 1), dbalance, dz,
              in(logits), integers(experts), out(dlogits));
        });

  m.def("moe_dispatch_forward", [](const py::array& x, const py::array& experts, int64_t n_expert, Out rows,
                                   py::array place, py::array offsets) {
    run(moe_dispatch_forward, in(x), integers(experts), x.shape(0), experts.shape(1), x.shape(1), n_expert, out(rows),
        integers_out(place), integers_out(offsets));
  });

  m.def("moe_dispatch_backward", [](const py::array& drows, const py::array& place, Out dx) {
    run(moe_dispatch_backward, in(drows), integers(place), place.shape(0), place.shape(1), drows.shape(1), out(dx));
  });

  m.def("grouped_linear_forward", [](In x, const py::array& weight, const py::array& offsets, Out y) {
    run(grouped_linear_forward, in(x), in(weight), integers(offsets), weight.shape(0), weight.shape(1), weight.shape(2),
        out(y));
  });

  m.def("grouped_linear_backward",
        [](In dy, In x, const py::array& weight, const py::array& offsets, bool accumulate, Out dx, Out dweight) {
          run(grouped_linear_backward, in(dy), in(x), in(weight), integers(offsets), weight.shape(0), weight.shape(1),
              weight.shape(2), accumulate, out(dx), out(dweight));
        });

  m.def("moe_combine_forward", [](const py::array& rows, In gates, const py::array& place, Out y) {
    run(moe_combine_forward, in(rows), in(gates), integers(place), place.shape(0), place.shape(1), rows.shape(1),
        out(y));
  });

  m.def("moe_combine_backward",
        [](In dy, const py::array& rows, In gates, const py::array& place, Out drows, Out dgates) {
          run(moe_combine_backward, in(dy), in(rows), in(gates), integers(place), place.shape(0), place.shape(1),
              rows.shape(1), out(drows), out(dgates));
        });
}

// For minigpt/bench.
using Flat = py::array_t<float, py::array::c_style>;

static void bind_machine_limits(py::module_& m) {
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
  bind_moe(m);
  bind_single_kernels(m);
}
