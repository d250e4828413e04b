"""The C++ backend: the functions of numpy_ops.py, computed by the kernels in csrc/cpp. float32 only.

Each function checks its arguments, makes the output arrays where the caller gave none, and calls the kernel.
"""

import importlib
import os

import numpy as np

from . import check

name = "cpp"


def _load():
    """Imports the module built for the best instruction set of this CPU (MINIGPT_ISA=base|avx2|avx512 asks for
    one). ImportError says in one line what is wrong."""
    try:
        base = importlib.import_module("minigpt._cpp_base")
    except ImportError as error:
        raise ImportError(f"the C++ kernels were not built ({error}); install a C++ compiler, then pip install -e .") \
            from None
    usable = base.cpu_isas()
    wanted = os.environ.get("MINIGPT_ISA")
    if wanted and wanted not in usable:
        raise ImportError(f"MINIGPT_ISA is {wanted!r}, but this CPU runs {', '.join(usable)}")
    for isa in [wanted] if wanted else usable:
        try:
            return importlib.import_module(f"minigpt._cpp_{isa}")
        except ImportError:
            if wanted:
                raise ImportError(f"MINIGPT_ISA is {wanted!r}, but minigpt._cpp_{wanted} was not built") from None
    return base


_C = _load()

# The rungs that can be chosen with kernel=, by operation, the default last.
kernels = {
    "layernorm_forward": _C.layernorm_forward_kernels,
    "layernorm_backward": _C.layernorm_backward_kernels,
    "attention_forward": _C.attention_forward_kernels,
    "attention_backward": _C.attention_backward_kernels,
}


def set_num_threads(n):
    _C.set_num_threads(n)


def _float32(op, name, x):
    if x.dtype != np.float32:
        raise TypeError(f"{op}: {name} is {x.dtype}, must be float32 in the C++ backend")


def _in(x):
    """An input as the kernels read it: contiguous, copied only if it is not."""
    return x if x is None or x.flags.c_contiguous else x.copy()


def _out(given, shape):
    """The array that a kernel writes: the caller's, unless there is none or it is not contiguous."""
    if given is None:
        return np.empty(shape, np.float32)
    return given if given.flags.c_contiguous else given.copy()


def _grad(given, shape, accumulate):
    """The same for the gradient of a parameter, which the kernel adds to where `accumulate`."""
    if given is None and accumulate:
        return np.zeros(shape, np.float32)
    return _out(given, shape)


def _deliver(result, given):
    """The result, copied into the caller's array where the kernel could not write there itself."""
    if given is None or given is result:
        return result
    given[...] = result
    return given


# ---------------------------------------------------------------------------------------------------------------
# layernorm and rmsnorm


def layernorm_forward(x, weight, bias=None, eps=1e-5, *, kernel=None, out=None):
    check.layernorm_forward(x, weight, bias, eps, kernel, kernels, out)
    _float32("layernorm_forward", "x", x)
    y_out, mean_out, rstd_out = out or (None, None, None)
    y, mean, rstd = _out(y_out, x.shape), _out(mean_out, x.shape[:-1]), _out(rstd_out, x.shape[:-1])
    _C.layernorm_forward(_in(x), _in(weight), _in(bias), eps, kernel, y, mean, rstd)
    return _deliver(y, y_out), _deliver(mean, mean_out), _deliver(rstd, rstd_out)


def layernorm_backward(dy, x, weight, mean, rstd, *, kernel=None, grads=None, accumulate=False):
    check.layernorm_backward(dy, x, weight, mean, rstd, kernel, kernels, grads)
    _float32("layernorm_backward", "x", x)
    dx_out, dweight_out, dbias_out = grads or (None, None, None)
    dx = _out(dx_out, x.shape)
    dweight, dbias = _grad(dweight_out, weight.shape, accumulate), _grad(dbias_out, weight.shape, accumulate)
    _C.layernorm_backward(_in(dy), _in(x), _in(weight), _in(mean), _in(rstd), kernel, accumulate, dx, dweight, dbias)
    return _deliver(dx, dx_out), _deliver(dweight, dweight_out), _deliver(dbias, dbias_out)


# ---------------------------------------------------------------------------------------------------------------
# attention


def _walkable(x):
    """Whether the attention kernels can go through x by its strides."""
    return x.flags.aligned and (x.strides[-1] == x.itemsize or x.shape[-1] == 1)


def _heads(x):
    return x if _walkable(x) else np.ascontiguousarray(x)


def _heads_out(x, shape):
    return x if x is not None and _walkable(x) else np.empty(shape, np.float32)


def attention_forward(q, k, v, causal=True, scale=None, *, kernel=None, out=None):
    scale = check.attention_forward(q, k, v, scale, kernel, kernels, out)
    _float32("attention_forward", "q", q)
    o, lse = out or (None, None)
    o_result = _heads_out(o, q.shape)
    lse_result = lse if lse is not None and lse.flags.c_contiguous else np.empty(q.shape[:3], np.float32)
    _C.attention_forward(_heads(q), _heads(k), _heads(v), causal, scale, kernel, o_result, lse_result)
    return _deliver(o_result, o), _deliver(lse_result, lse)


def attention_backward(dout, q, k, v, out, lse, causal=True, scale=None, *, kernel=None, grads=None):
    scale = check.attention_backward(dout, q, k, v, out, lse, scale, kernel, kernels, grads)
    _float32("attention_backward", "q", q)
    dq, dk, dv = grads or (None, None, None)
    results = _heads_out(dq, q.shape), _heads_out(dk, k.shape), _heads_out(dv, v.shape)
    _C.attention_backward(_heads(dout), _heads(q), _heads(k), _heads(v), _heads(out), np.ascontiguousarray(lse),
                          causal, scale, kernel, *results)
    return tuple(_deliver(result, given) for result, given in zip(results, (dq, dk, dv), strict=True))
