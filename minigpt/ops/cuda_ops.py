"""The CUDA backends: the functions of numpy_ops.py, computed by the kernels in csrc/cuda.

ops.load("cuda") and ops.load("emulated") both are this file, loaded under two names: the launchers are the same, only
the machine differs. On a GPU arrays may be torch tensors in its memory (used where they are, on torch's current
stream), anything else with DLPack, or NumPy arrays, which are copied there and back. Emulated, they are NumPy arrays
or torch tensors on the CPU. Most kernels take float32, bfloat16 and float16; mean, rstd, lse and losses are always
float32. cuda_call.py says how a call reaches its kernel.
"""

import sys

import numpy as np

from . import check, numpy_moe, numpy_ops
from .bfloat16 import dtype_name
from .cuda_arrays import device, owner
from .cuda_call import Call, Emulator, choose, find_rungs, strides

name = __name__.rpartition(".")[2].removesuffix("_ops")           # "cuda" or "emulated"

if name == "emulated":
    _machine = Emulator()
else:
    from .gpu import GPU
    _machine = GPU()

MISSING = tuple(numpy_moe.__all__)        # mixture of experts has no CUDA kernels yet
_OPS = [op for op in vars(numpy_ops)
        if op.endswith(("_forward", "_backward")) and op not in MISSING or op in ("adamw", "squared_norm")]
_rungs = {op: [rung for rung in rungs if _machine.has(rung)] for op, rungs in find_rungs(_OPS).items()}

# The rungs that can be chosen with kernel=, by operation. The default is the last that takes the
# arrays, is deterministic and need not be asked for (cuda_call.py).
kernels = {op: tuple(rung.name for rung in _rungs.get(op, ())) for op in numpy_ops.kernels}


def __getattr__(op):
    if op in MISSING:
        raise AttributeError(f"{op}: the {name} backend has no mixture of experts; numpy and cpp have")
    raise AttributeError(f"module {__name__!r} has no attribute {op!r}")


def takes(op, kernel=None, dtype="float32", D=1):
    """Whether op, or that rung of it, takes arrays of this dtype (and heads of this size)."""
    return any(rung.takes(dtype, D) for rung in _rungs.get(op, ()) if kernel in (None, rung.name))


def _rung(op, x, kernel=None, D=1):
    return choose(op, _rungs[op], kernel, dtype_name(x.dtype), D)


# ---------------------------------------------------------------------------------------------------------------
# embedding


def embedding_forward(tokens, wte, wpe=None, position=0, *, out=None):
    call = Call(_machine, "embedding_forward")
    tokens, wte, wpe, out = call.views(tokens, wte, wpe, out)
    check.embedding_forward(tokens, wte, wpe, position, out)
    rung = _rung("embedding_forward", wte)
    (B, T), C = tokens.shape, wte.shape[1]
    x = call.write(out, (B, T, C))
    call.launch(rung, call.read(tokens, np.int64), call.read(wte), call.read(wpe), x, B, T, C, position)
    return call.results(x)


def embedding_backward(dx, tokens, wte, wpe=None, position=0, *, grads=None, accumulate=False):
    call = Call(_machine, "embedding_backward")
    dx, tokens, wte, wpe, grads = call.views(dx, tokens, wte, wpe, grads)
    check.embedding_backward(dx, tokens, wte, wpe, position, grads)
    rung = _rung("embedding_backward", wte)
    (B, T), (V, C) = tokens.shape, wte.shape
    dwte, dwpe = grads or (None, None)
    dwte = call.add_to(dwte, wte.shape, accumulate)
    dwpe = None if wpe is None else call.add_to(dwpe, wpe.shape, accumulate)
    call.launch(rung, call.read(dx), call.read(tokens, np.int64), dwte, dwpe, B, T, C, V,
                0 if wpe is None else len(wpe), position, accumulate)
    return call.results(dwte, dwpe)


# ---------------------------------------------------------------------------------------------------------------
# layernorm and rmsnorm


def layernorm_forward(x, weight, bias=None, eps=1e-5, *, kernel=None, out=None):
    call = Call(_machine, "layernorm_forward")
    x, weight, bias, out = call.views(x, weight, bias, out)
    check.layernorm_forward(x, weight, bias, eps, kernel, kernels, out)
    rung = _rung("layernorm_forward", x, kernel)
    y, mean, rstd = out or (None, None, None)
    y = call.write(y, x.shape)
    mean, rstd = (call.write(given, x.shape[:-1], np.float32) for given in (mean, rstd))
    C = x.shape[-1]
    call.launch(rung, call.read(x), call.read(weight), call.read(bias), y, mean, rstd, x.size // C, C, eps)
    return call.results(y, mean, rstd)


def layernorm_backward(dy, x, weight, mean, rstd, *, kernel=None, grads=None, accumulate=False):
    call = Call(_machine, "layernorm_backward")
    dy, x, weight, mean, rstd, grads = call.views(dy, x, weight, mean, rstd, grads)
    check.layernorm_backward(dy, x, weight, mean, rstd, kernel, kernels, grads)
    rung = _rung("layernorm_backward", x, kernel)
    dx, dweight, dbias = grads or (None, None, None)
    dx = call.write(dx, x.shape)
    dweight, dbias = (call.add_to(given, weight.shape, accumulate) for given in (dweight, dbias))
    C = x.shape[-1]
    call.launch(rung, call.read(dy), call.read(x), call.read(weight), call.read(mean, np.float32),
                call.read(rstd, np.float32), dx, dweight, dbias, x.size // C, C, accumulate)
    return call.results(dx, dweight, dbias)


def rmsnorm_forward(x, weight, eps=1e-5, *, out=None):
    call = Call(_machine, "rmsnorm_forward")
    x, weight, out = call.views(x, weight, out)
    check.rmsnorm_forward(x, weight, eps, out)
    rung = _rung("rmsnorm_forward", x)
    y, rstd = out or (None, None)
    y, rstd = call.write(y, x.shape), call.write(rstd, x.shape[:-1], np.float32)
    C = x.shape[-1]
    call.launch(rung, call.read(x), call.read(weight), y, rstd, x.size // C, C, eps)
    return call.results(y, rstd)


def rmsnorm_backward(dy, x, weight, rstd, *, grads=None, accumulate=False):
    call = Call(_machine, "rmsnorm_backward")
    dy, x, weight, rstd, grads = call.views(dy, x, weight, rstd, grads)
    check.rmsnorm_backward(dy, x, weight, rstd, grads)
    rung = _rung("rmsnorm_backward", x)
    dx, dweight = grads or (None, None)
    dx, dweight = call.write(dx, x.shape), call.add_to(dweight, weight.shape, accumulate)
    C = x.shape[-1]
    call.launch(rung, call.read(dy), call.read(x), call.read(weight), call.read(rstd, np.float32), dx, dweight,
                x.size // C, C, accumulate)
    return call.results(dx, dweight)


def residual_layernorm_forward(x, residual, weight, bias=None, eps=1e-5, *, out=None):
    call = Call(_machine, "residual_layernorm_forward")
    x, residual, weight, bias, out = call.views(x, residual, weight, bias, out)
    check.residual_layernorm_forward(x, residual, weight, bias, eps, out)
    rung = _rung("residual_layernorm_forward", x)
    h, y, mean, rstd = out or (None, None, None, None)
    h, y = (call.write(given, x.shape) for given in (h, y))
    mean, rstd = (call.write(given, x.shape[:-1], np.float32) for given in (mean, rstd))
    C = x.shape[-1]
    call.launch(rung, call.read(x), call.read(residual), call.read(weight), call.read(bias), h, y, mean, rstd,
                x.size // C, C, eps)
    return call.results(h, y, mean, rstd)


def residual_layernorm_backward(dh, dy, h, weight, mean, rstd, *, grads=None, accumulate=False):
    call = Call(_machine, "residual_layernorm_backward")
    dh, dy, h, weight, mean, rstd, grads = call.views(dh, dy, h, weight, mean, rstd, grads)
    check.residual_layernorm_backward(dh, dy, h, weight, mean, rstd, grads)
    rung = _rung("residual_layernorm_backward", h)
    dx, dweight, dbias = grads or (None, None, None)
    dx = call.write(dx, h.shape)
    dweight, dbias = (call.add_to(given, weight.shape, accumulate) for given in (dweight, dbias))
    C = h.shape[-1]
    call.launch(rung, call.read(dh), call.read(dy), call.read(h), call.read(weight), call.read(mean, np.float32),
                call.read(rstd, np.float32), dx, dweight, dbias, h.size // C, C, accumulate)
    return call.results(dx, dweight, dbias)


# ---------------------------------------------------------------------------------------------------------------
# linear. The ladder is there to be read; torch tensors on a GPU go to the vendor's library unless a rung is named


def _vendor(*arrays):
    """torch, where all of the arrays are its tensors on a GPU."""
    given = [x for x in arrays if x is not None]
    return sys.modules["torch"] if all(device(x) is not None and hasattr(owner(x), "data_ptr") for x in given) else None


def linear_forward(x, weight, bias=None, *, kernel=None, out=None):
    call = Call(_machine, "linear_forward")
    x, weight, bias, out = call.views(x, weight, bias, out)
    check.linear_forward(x, weight, bias, kernel, kernels, out)
    if kernel is None and (torch := _vendor(x, weight, bias, out)):
        return _vendor_forward(torch, *map(owner, (x, weight, bias, out)))
    rung = _rung("linear_forward", x, kernel)
    N, K = weight.shape
    y = call.write(out, (*x.shape[:-1], N))
    call.launch(rung, call.read(x), call.read(weight), call.read(bias), y, x.size // K, K, N)
    return call.results(y)


def _vendor_forward(torch, x, weight, bias, out):
    with torch.no_grad():                                           # as everywhere here, autograd writes nothing down
        if out is None:
            return torch.nn.functional.linear(x, weight, bias)
        torch.matmul(x, weight.T, out=out)
        return out if bias is None else out.add_(bias)


def linear_backward(dy, x, weight, *, kernel=None, grads=None, accumulate=False):
    call = Call(_machine, "linear_backward")
    dy, x, weight, grads = call.views(dy, x, weight, grads)
    check.linear_backward(dy, x, weight, kernel, kernels, grads)
    dx, dweight, dbias = grads or (None, None, None)
    wants_dx, wants_dbias = grads is None or dx is not None, grads is None or dbias is not None
    N, K = weight.shape
    dx = call.write(dx, x.shape) if wants_dx else None
    dweight = call.add_to(dweight, weight.shape, accumulate)
    dbias = call.add_to(dbias, (N,), accumulate) if wants_dbias else None
    if kernel is None and (torch := _vendor(dy, x, weight, dx, dweight, dbias)):
        _vendor_backward(torch, *map(owner, (dy, x, weight, dx, dweight, dbias)), accumulate)
    else:
        rung = _rung("linear_backward", x, kernel)
        call.launch(rung, call.read(dy), call.read(x), call.read(weight), dx, dweight, dbias, x.size // K, K, N,
                    accumulate)
    return call.results(dx, dweight, dbias)


def _vendor_backward(torch, dy, x, weight, dx, dweight, dbias, accumulate):
    with torch.no_grad():
        dy_rows, x_rows = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        if dx is not None:
            torch.matmul(dy, weight, out=dx)
        dweight.addmm_(dy_rows.T, x_rows, beta=int(accumulate))             # beta = 0: what was there, NaN too, is gone
        if dbias is not None and accumulate:
            dbias.add_(dy_rows.sum(0))
        elif dbias is not None:
            torch.sum(dy_rows, 0, out=dbias)


def linear_gelu_forward(x, weight, bias=None, *, out=None):
    call = Call(_machine, "linear_gelu_forward")
    x, weight, bias, out = call.views(x, weight, bias, out)
    check.linear_gelu_forward(x, weight, bias, out)
    y, pre = out or (None, None)
    if torch := _vendor(x, weight, bias, y, pre):
        pre = _vendor_forward(torch, *map(owner, (x, weight, bias, pre)))
        return gelu_forward(pre, out=owner(y)), pre
    rung = _rung("linear_gelu_forward", x)
    N, K = weight.shape
    y, pre = (call.write(given, (*x.shape[:-1], N)) for given in (y, pre))
    call.launch(rung, call.read(x), call.read(weight), call.read(bias), y, pre, x.size // K, K, N)
    return call.results(y, pre)


# ---------------------------------------------------------------------------------------------------------------
# activations


def gelu_forward(x, *, out=None):
    call = Call(_machine, "gelu_forward")
    x, out = call.views(x, out)
    check.same_shape("gelu_forward", "x", x=x, out=out)
    rung = _rung("gelu_forward", x)
    y = call.write(out, x.shape)
    call.launch(rung, call.read(x), y, x.size)
    return call.results(y)


def gelu_backward(dy, x, *, grads=None):
    call = Call(_machine, "gelu_backward")
    dy, x, grads = call.views(dy, x, grads)
    check.same_shape("gelu_backward", "dy", dy=dy, x=x, grads=grads)
    rung = _rung("gelu_backward", x)
    dx = call.write(grads, x.shape)
    call.launch(rung, call.read(dy), call.read(x), dx, x.size)
    return call.results(dx)


def swiglu_forward(gate, up, *, out=None):
    call = Call(_machine, "swiglu_forward")
    gate, up, out = call.views(gate, up, out)
    check.same_shape("swiglu_forward", gate=gate, up=up, out=out)
    rung = _rung("swiglu_forward", gate)
    y = call.write(out, gate.shape)
    call.launch(rung, call.read(gate), call.read(up), y, gate.size)
    return call.results(y)


def swiglu_backward(dy, gate, up, *, grads=None):
    call = Call(_machine, "swiglu_backward")
    dy, gate, up, grads = call.views(dy, gate, up, grads)
    check.swiglu_backward(dy, gate, up, grads)
    rung = _rung("swiglu_backward", gate)
    dgate, dup = (call.write(given, gate.shape) for given in grads or (None, None))
    call.launch(rung, call.read(dy), call.read(gate), call.read(up), dgate, dup, gate.size)
    return call.results(dgate, dup)


# ---------------------------------------------------------------------------------------------------------------
# rope


def rope_forward(x, cos, sin, *, out=None):
    return _rope("rope_forward", x, cos, sin, out)


def rope_backward(dy, cos, sin, *, grads=None):
    return _rope("rope_backward", dy, cos, sin, grads)


def _rope(op, x, cos, sin, out):
    call = Call(_machine, op)
    x, cos, sin, out = call.views(x, cos, sin, out)
    check.rope(op, x, cos, sin, out)
    rung = _rung(op, x)
    y = call.write_heads(out, x.shape)
    call.launch(rung, *strides(call.heads(x)), call.read(cos), call.read(sin), *strides(y), *x.shape)
    return call.results(y)


# ---------------------------------------------------------------------------------------------------------------
# attention


def attention_forward(q, k, v, causal=True, scale=None, *, kernel=None, out=None):
    call = Call(_machine, "attention_forward")
    q, k, v, out = call.views(q, k, v, out)
    scale = check.attention_forward(q, k, v, causal, scale, kernel, kernels, out)
    (B, H, Tq, D), (Hkv, Tk) = q.shape, k.shape[1:3]
    rung = _rung("attention_forward", q, kernel, D)
    o, lse = out or (None, None)
    o, lse = call.write_heads(o, q.shape, rung.D_multiple), call.write(lse, (B, H, Tq), np.float32)
    q, k, v = (call.heads(x, rung.D_multiple) for x in (q, k, v))
    call.launch(rung, *strides(q), *strides(k), *strides(v), *strides(o), lse, B, H, Hkv, Tq, Tk, q.shape[-1], causal,
                scale)
    return call.results(o, lse)


def attention_backward(dout, q, k, v, out, lse, causal=True, scale=None, *, kernel=None, grads=None):
    call = Call(_machine, "attention_backward")
    dout, q, k, v, out, lse, grads = call.views(dout, q, k, v, out, lse, grads)
    scale = check.attention_backward(dout, q, k, v, out, lse, causal, scale, kernel, kernels, grads)
    (B, H, Tq, D), (Hkv, Tk) = q.shape, k.shape[1:3]
    rung = _rung("attention_backward", q, kernel, D)
    gradients = [call.write_heads(given, x.shape, rung.D_multiple)
                 for given, x in zip(grads or (None, None, None), (q, k, v), strict=True)]
    dout, q, k, v, out = (call.heads(x, rung.D_multiple) for x in (dout, q, k, v, out))
    call.launch(rung, *strides(dout), *strides(q), *strides(k), *strides(v), *strides(out), call.read(lse, np.float32),
                *(word for x in gradients for word in strides(x)), B, H, Hkv, Tq, Tk, q.shape[-1], causal, scale)
    return call.results(*gradients)


# ---------------------------------------------------------------------------------------------------------------
# cross-entropy


def cross_entropy_forward(logits, targets, ignore_index=-100, *, out=None):
    call = Call(_machine, "cross_entropy_forward")
    logits, targets, out = call.views(logits, targets, out)
    check.cross_entropy_forward(logits, targets, ignore_index, out)
    rung = _rung("cross_entropy_forward", logits)
    losses, lse = (call.write(given, targets.shape, np.float32) for given in out or (None, None))
    call.launch(rung, call.read(logits), call.read(targets, np.int64), losses, lse, targets.size, logits.shape[-1],
                ignore_index)
    return call.results(losses, lse)


def cross_entropy_backward(dloss, logits, targets, lse, ignore_index=-100, *, grads=None):
    call = Call(_machine, "cross_entropy_backward")
    logits, targets, lse, grads, dloss = call.views(logits, targets, lse, grads, dloss)
    check.cross_entropy_backward(dloss, logits, targets, lse, ignore_index, grads)
    rung = _rung("cross_entropy_backward", logits)
    dlogits = call.write(grads, logits.shape)
    one, each = (1.0, dloss) if isinstance(dloss, np.ndarray) else (dloss, None)
    call.launch(rung, call.read(each, np.float32), call.read(logits), call.read(targets, np.int64),
                call.read(lse, np.float32), dlogits, targets.size, logits.shape[-1], ignore_index, one)
    return call.results(dlogits)


# ---------------------------------------------------------------------------------------------------------------
# the optimiser


def adamw(param, grad, m, v, step, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, grad_scale=1.0, *,
          master=None):
    call = Call(_machine, "adamw")
    param, grad, m, v, master = call.views(param, grad, m, v, master)
    check.adamw(param, grad, m, v, step, master, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
                grad_scale=grad_scale)
    rung = _rung("adamw", param)
    if master is not None and master.dtype != np.float32:
        raise TypeError(f"adamw: master is {dtype_name(master.dtype)}, must be float32 in the CUDA backends")
    moved = [None if x is None else call.update(x) for x in (param, m, v, master)]
    call.launch(rung, moved[0], call.read(grad), *moved[1:], param.size, beta1, 1 - beta1, beta2, 1 - beta2,
                lr / (1 - beta1 ** step), 1 / (1 - beta2 ** step), 1 - lr * weight_decay, eps, grad_scale)
    call.results(*moved)


def squared_norm(x):
    call = Call(_machine, "squared_norm")
    x, = call.views(x)
    check.squared_norm(x)
    rung = _rung("squared_norm", x)
    norm = call.write(None, (1,), np.float64)
    call.launch(rung, call.read(x), norm, x.size)
    return float(call.results(norm)[0])
