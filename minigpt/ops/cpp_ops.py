"""The C++ backend: the functions of numpy_ops.py, computed by the kernels in csrc/cpp. float32 only.

Each function checks its arguments, makes the output arrays where the caller gave none, and calls the kernel.
"""

import importlib
import os

import numpy as np

from . import check, check_moe
from .bfloat16 import as_dtype

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
    "linear_forward": _C.linear_kernels,
    "linear_backward": _C.linear_kernels,
    "attention_forward": _C.attention_forward_kernels,
    "attention_backward": _C.attention_backward_kernels,
}


num_threads, set_num_threads = _C.num_threads, _C.set_num_threads


def _float32(op, name, x):
    if x.dtype != np.float32:
        raise TypeError(f"{op}: {name} is {x.dtype}, must be float32 in the C++ backend")


def _plain(x):
    """Whether a kernel can read and write x as it lies: contiguous, at an address that is a multiple of its items."""
    flags = x.flags
    return flags.c_contiguous and flags.aligned


def _in(x):
    """An input as the kernels read it: copied only if it is not plain."""
    return x if x is None or _plain(x) else x.copy()


def _out(given, shape):
    """The array that a kernel writes: the caller's, unless there is none or it is not plain."""
    if given is None:
        return np.empty(shape, np.float32)
    return given if _plain(given) else given.copy()


def _grad(given, shape, accumulate):
    """The same for the gradient of a parameter, which the kernel adds to where `accumulate`."""
    if given is None and accumulate:
        return np.zeros(shape, np.float32)
    return _out(given, shape)


def _integers(x):
    return _in(x.astype(np.int64, copy=False))


def _walkable(x):
    """Whether the kernels of heads (rope, attention) can go through x by its strides."""
    return x.flags.aligned and (x.strides[-1] == x.itemsize or x.shape[-1] == 1)


def _heads(x):
    return x if _walkable(x) else x.copy()


def _heads_out(x, shape):
    return x if x is not None and _walkable(x) else np.empty(shape, np.float32)


def _deliver(result, given):
    """The result, copied into the caller's array where the kernel could not write there itself."""
    if given is None or given is result:
        return result
    given[...] = result
    return given


# ---------------------------------------------------------------------------------------------------------------
# embedding


def embedding_forward(tokens, wte, wpe=None, position=0, *, out=None):
    check.embedding_forward(tokens, wte, wpe, position, out)
    _float32("embedding_forward", "wte", wte)
    x = _out(out, (*tokens.shape, wte.shape[1]))
    _C.embedding_forward(_integers(tokens), _in(wte), _in(wpe), position, x)
    return _deliver(x, out)


def embedding_backward(dx, tokens, wte, wpe=None, position=0, *, grads=None, accumulate=False):
    check.embedding_backward(dx, tokens, wte, wpe, position, grads)
    _float32("embedding_backward", "wte", wte)
    given = grads or (None, None)
    dwte, dwpe = (table if table is None else _table_grad(grad, table.shape, accumulate)
                  for table, grad in zip((wte, wpe), given, strict=True))
    _C.embedding_backward(_in(dx), _integers(tokens), position, dwte, dwpe)
    return _deliver(dwte, given[0]), dwpe if wpe is None else _deliver(dwpe, given[1])


def _table_grad(given, shape, accumulate):
    """The gradient of a table before anything is added to it."""
    if given is None:
        return np.zeros(shape, np.float32)
    if not accumulate:
        given[...] = 0
    return _out(given, shape)


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


def rmsnorm_forward(x, weight, eps=1e-5, *, out=None):
    check.rmsnorm_forward(x, weight, eps, out)
    _float32("rmsnorm_forward", "x", x)
    y_out, rstd_out = out or (None, None)
    y, rstd = _out(y_out, x.shape), _out(rstd_out, x.shape[:-1])
    _C.rmsnorm_forward(_in(x), _in(weight), eps, y, rstd)
    return _deliver(y, y_out), _deliver(rstd, rstd_out)


def rmsnorm_backward(dy, x, weight, rstd, *, grads=None, accumulate=False):
    check.rmsnorm_backward(dy, x, weight, rstd, grads)
    _float32("rmsnorm_backward", "x", x)
    dx_out, dweight_out = grads or (None, None)
    dx, dweight = _out(dx_out, x.shape), _grad(dweight_out, weight.shape, accumulate)
    _C.rmsnorm_backward(_in(dy), _in(x), _in(weight), _in(rstd), accumulate, dx, dweight)
    return _deliver(dx, dx_out), _deliver(dweight, dweight_out)


def residual_layernorm_forward(x, residual, weight, bias=None, eps=1e-5, *, out=None):
    check.residual_layernorm_forward(x, residual, weight, bias, eps, out)
    _float32("residual_layernorm_forward", "x", x)
    h_out, y_out, mean_out, rstd_out = out or (None, None, None, None)
    h, y, mean, rstd = (_out(h_out, x.shape), _out(y_out, x.shape),
                        _out(mean_out, x.shape[:-1]), _out(rstd_out, x.shape[:-1]))
    _C.residual_layernorm_forward(_in(x), _in(residual), _in(weight), _in(bias), eps, h, y, mean, rstd)
    return _deliver(h, h_out), _deliver(y, y_out), _deliver(mean, mean_out), _deliver(rstd, rstd_out)


def residual_layernorm_backward(dh, dy, h, weight, mean, rstd, *, grads=None, accumulate=False):
    check.residual_layernorm_backward(dh, dy, h, weight, mean, rstd, grads)
    _float32("residual_layernorm_backward", "h", h)
    dx_out, dweight_out, dbias_out = grads or (None, None, None)
    dx = _out(dx_out, h.shape)
    dweight, dbias = _grad(dweight_out, weight.shape, accumulate), _grad(dbias_out, weight.shape, accumulate)
    _C.residual_layernorm_backward(_in(dh), _in(dy), _in(h), _in(weight), _in(mean), _in(rstd), accumulate,
                                   dx, dweight, dbias)
    return _deliver(dx, dx_out), _deliver(dweight, dweight_out), _deliver(dbias, dbias_out)


# ---------------------------------------------------------------------------------------------------------------
# linear


def _linear_forward(op, x, weight, bias, kernel, given, gelu):
    _float32(op, "x", x)
    y = _out(given, (*x.shape[:-1], weight.shape[0]))
    _C.linear_forward(_in(x), _in(weight), _in(bias), kernel, y, gelu)
    return _deliver(y, given)


def linear_forward(x, weight, bias=None, *, kernel=None, out=None):
    check.linear_forward(x, weight, bias, kernel, kernels, out)
    return _linear_forward("linear_forward", x, weight, bias, kernel, out, None)


def linear_backward(dy, x, weight, *, kernel=None, grads=None, accumulate=False):
    check.linear_backward(dy, x, weight, kernel, kernels, grads)
    _float32("linear_backward", "x", x)
    dx_out, dweight_out, dbias_out = grads or (None, None, None)
    dx = None if grads and dx_out is None else _out(dx_out, x.shape)
    dweight = _grad(dweight_out, weight.shape, accumulate)
    dbias = None if grads and dbias_out is None else _grad(dbias_out, weight.shape[:1], accumulate)
    _C.linear_backward(_in(dy), _in(x), _in(weight), kernel, accumulate, dx, dweight, dbias)
    return _deliver(dx, dx_out), _deliver(dweight, dweight_out), _deliver(dbias, dbias_out)


def linear_gelu_forward(x, weight, bias=None, *, out=None):
    check.linear_gelu_forward(x, weight, bias, out)
    y_out, pre_out = out or (None, None)
    y = _out(y_out, (*x.shape[:-1], weight.shape[0]))
    pre = _linear_forward("linear_gelu_forward", x, weight, bias, None, pre_out, y)
    return _deliver(y, y_out), pre


# ---------------------------------------------------------------------------------------------------------------
# activations


def gelu_forward(x, *, out=None):
    check.same_shape("gelu_forward", "x", x=x, out=out)
    _float32("gelu_forward", "x", x)
    y = _out(out, x.shape)
    _C.gelu_forward(_in(x), y)
    return _deliver(y, out)


def gelu_backward(dy, x, *, grads=None):
    check.same_shape("gelu_backward", "dy", dy=dy, x=x, grads=grads)
    _float32("gelu_backward", "x", x)
    dx = _out(grads, x.shape)
    _C.gelu_backward(_in(dy), _in(x), dx)
    return _deliver(dx, grads)


def swiglu_forward(gate, up, *, out=None):
    check.same_shape("swiglu_forward", gate=gate, up=up, out=out)
    _float32("swiglu_forward", "gate", gate)
    y = _out(out, gate.shape)
    _C.swiglu_forward(_in(gate), _in(up), y)
    return _deliver(y, out)


def swiglu_backward(dy, gate, up, *, grads=None):
    check.swiglu_backward(dy, gate, up, grads)
    _float32("swiglu_backward", "gate", gate)
    dgate_out, dup_out = grads or (None, None)
    dgate, dup = _out(dgate_out, gate.shape), _out(dup_out, gate.shape)
    _C.swiglu_backward(_in(dy), _in(gate), _in(up), dgate, dup)
    return _deliver(dgate, dgate_out), _deliver(dup, dup_out)


# ---------------------------------------------------------------------------------------------------------------
# rope


def rope_forward(x, cos, sin, *, out=None):
    return _rope("rope_forward", x, cos, sin, out, backwards=False)


def rope_backward(dy, cos, sin, *, grads=None):
    return _rope("rope_backward", dy, cos, sin, grads, backwards=True)


def _rope(op, x, cos, sin, out, backwards):
    check.rope(op, x, cos, sin, out)
    _float32(op, "x", x)
    y = _heads_out(out, x.shape)
    _C.rope(_heads(x), _in(cos), _in(sin), backwards, y)
    return _deliver(y, out)


# ---------------------------------------------------------------------------------------------------------------
# attention


def attention_forward(q, k, v, causal=True, scale=None, *, kernel=None, out=None):
    scale = check.attention_forward(q, k, v, causal, scale, kernel, kernels, out)
    _float32("attention_forward", "q", q)
    o, lse = out or (None, None)
    o_result = _heads_out(o, q.shape)
    lse_result = _out(lse, q.shape[:3])
    _C.attention_forward(_heads(q), _heads(k), _heads(v), causal, scale, kernel, o_result, lse_result)
    return _deliver(o_result, o), _deliver(lse_result, lse)


def attention_backward(dout, q, k, v, out, lse, causal=True, scale=None, *, kernel=None, grads=None):
    scale = check.attention_backward(dout, q, k, v, out, lse, causal, scale, kernel, kernels, grads)
    _float32("attention_backward", "q", q)
    dq, dk, dv = grads or (None, None, None)
    results = _heads_out(dq, q.shape), _heads_out(dk, k.shape), _heads_out(dv, v.shape)
    _C.attention_backward(_heads(dout), _heads(q), _heads(k), _heads(v), _heads(out), _in(lse),
                          causal, scale, kernel, *results)
    return tuple(_deliver(result, given) for result, given in zip(results, (dq, dk, dv), strict=True))


# ---------------------------------------------------------------------------------------------------------------
# cross-entropy


def cross_entropy_forward(logits, targets, ignore_index=-100, *, out=None):
    check.cross_entropy_forward(logits, targets, ignore_index, out)
    _float32("cross_entropy_forward", "logits", logits)
    losses_out, lse_out = out or (None, None)
    losses, lse = _out(losses_out, targets.shape), _out(lse_out, targets.shape)
    _C.cross_entropy_forward(_in(logits), _integers(targets), ignore_index, losses, lse)
    return _deliver(losses, losses_out), _deliver(lse, lse_out)


def cross_entropy_backward(dloss, logits, targets, lse, ignore_index=-100, *, grads=None):
    check.cross_entropy_backward(dloss, logits, targets, lse, ignore_index, grads)
    _float32("cross_entropy_backward", "logits", logits)
    dlogits = _out(grads, logits.shape)
    by_row = isinstance(dloss, np.ndarray)
    one = 1.0 if by_row else dloss
    _C.cross_entropy_backward(one, _in(logits), _integers(targets), _in(lse), ignore_index, dlogits)
    if by_row:
        np.multiply(dlogits, dloss[..., None], out=dlogits, where=(targets != ignore_index)[..., None])
    return _deliver(dlogits, grads)


# ---------------------------------------------------------------------------------------------------------------
# the optimiser


def adamw(param, grad, m, v, step, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, grad_scale=1.0, *,
          master=None):
    check.adamw(param, grad, m, v, step, master, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
                grad_scale=grad_scale)
    weights = param if master is None else master
    _float32("adamw", "param" if master is None else "master", weights)
    results = [_out(x, x.shape) for x in (weights, m, v)]
    _C.adamw(results[0], _in(as_dtype(grad, np.float32)), results[1], results[2], step, lr, beta1, beta2, eps,
             weight_decay, grad_scale)
    for result, given in zip(results, (weights, m, v), strict=True):
        _deliver(result, given)
    if master is not None:
        param[...] = as_dtype(master, param.dtype)


def squared_norm(x):
    check.squared_norm(x)
    _float32("squared_norm", "x", x)
    return _C.squared_norm(_in(x))


# ---------------------------------------------------------------------------------------------------------------
# mixture of experts


def _integers_out(given, shape):
    if given is None:
        return np.empty(shape, np.int64)
    return given if _plain(given) else given.copy()


def moe_router_forward(logits, k, bias=None, gate="softmax", normalize=True, scale=1.0, groups=1, active_groups=1, *,
                       out=None):
    check_moe.moe_router_forward(logits, k, bias, gate, scale, groups, active_groups, out)
    _float32("moe_router_forward", "logits", logits)
    gates_out, experts_out = out or (None, None)
    gates, experts = _out(gates_out, (len(logits), k)), _integers_out(experts_out, (len(logits), k))
    _C.moe_router_forward(_in(logits), k, _in(bias), gate == "sigmoid", normalize, scale, groups, active_groups,
                          gates, experts)
    return _deliver(gates, gates_out), _deliver(experts, experts_out)


def moe_router_backward(dgates, logits, experts, gate="softmax", normalize=True, scale=1.0, *, grads=None):
    check_moe.moe_router_backward(dgates, logits, experts, gate, scale, grads)
    _float32("moe_router_backward", "logits", logits)
    dlogits = _out(grads, logits.shape)
    _C.moe_router_backward(_in(dgates), _in(logits), _integers(experts), gate == "sigmoid", normalize, scale, dlogits)
    return _deliver(dlogits, grads)


def router_losses_forward(logits, experts, gate="softmax"):
    check_moe.router_losses_forward(logits, experts, gate)
    _float32("router_losses_forward", "logits", logits)
    balance, z = _C.router_losses_forward(_in(logits), _integers(experts), gate == "sigmoid")
    return np.float32(balance), np.float32(z)


def router_losses_backward(dbalance, dz, logits, experts, gate="softmax", *, grads=None):
    check_moe.router_losses_backward(dbalance, dz, logits, experts, gate, grads)
    _float32("router_losses_backward", "logits", logits)
    dlogits = _out(grads, logits.shape)
    _C.router_losses_backward(dbalance, dz, _in(logits), _integers(experts), gate == "sigmoid", dlogits)
    return _deliver(dlogits, grads)


def moe_dispatch_forward(x, experts, n_expert, *, out=None):
    check_moe.moe_dispatch_forward(x, experts, n_expert, out)
    _float32("moe_dispatch_forward", "x", x)
    rows_out, place_out, offsets_out = out or (None, None, None)
    rows, place = _out(rows_out, (experts.size, x.shape[1])), _integers_out(place_out, experts.shape)
    offsets = _integers_out(offsets_out, (n_expert + 1,))
    _C.moe_dispatch_forward(_in(x), _integers(experts), n_expert, rows, place, offsets)
    return _deliver(rows, rows_out), _deliver(place, place_out), _deliver(offsets, offsets_out)


def moe_dispatch_backward(drows, place, *, grads=None):
    check_moe.moe_dispatch_backward(drows, place, grads)
    _float32("moe_dispatch_backward", "drows", drows)
    dx = _out(grads, (len(place), drows.shape[1]))
    _C.moe_dispatch_backward(_in(drows), _integers(place), dx)
    return _deliver(dx, grads)


def grouped_linear_forward(x, weight, offsets, *, out=None):
    check_moe.grouped_linear_forward(x, weight, offsets, out)
    _float32("grouped_linear_forward", "x", x)
    y = _out(out, (len(x), weight.shape[1]))
    _C.grouped_linear_forward(_in(x), _in(weight), _integers(offsets), y)
    return _deliver(y, out)


def grouped_linear_backward(dy, x, weight, offsets, *, grads=None, accumulate=False):
    check_moe.grouped_linear_backward(dy, x, weight, offsets, grads)
    _float32("grouped_linear_backward", "x", x)
    dx_out, dweight_out = grads or (None, None)
    dx, dweight = _out(dx_out, x.shape), _grad(dweight_out, weight.shape, accumulate)
    _C.grouped_linear_backward(_in(dy), _in(x), _in(weight), _integers(offsets), accumulate, dx, dweight)
    return _deliver(dx, dx_out), _deliver(dweight, dweight_out)


def moe_combine_forward(rows, gates, place, *, out=None):
    check_moe.moe_combine_forward(rows, gates, place, out)
    _float32("moe_combine_forward", "rows", rows)
    y = _out(out, (len(place), rows.shape[1]))
    _C.moe_combine_forward(_in(rows), _in(gates), _integers(place), y)
    return _deliver(y, out)


def moe_combine_backward(dy, rows, gates, place, *, grads=None):
    check_moe.moe_combine_backward(dy, rows, gates, place, grads)
    _float32("moe_combine_backward", "rows", rows)
    drows_out, dgates_out = grads or (None, None)
    drows, dgates = _out(drows_out, rows.shape), _out(dgates_out, gates.shape)
    _C.moe_combine_backward(_in(dy), _in(rows), _in(gates), _integers(place), drows, dgates)
    return _deliver(drows, drows_out), _deliver(dgates, dgates_out)
