"""The CUDA backends: the functions of numpy_ops.py, computed by the kernels in csrc/cuda.

ops.load("cuda") and ops.load("emulated") both are this file, loaded under two names: the launchers are the same, only
the machine differs. On a GPU arrays may be torch tensors in its memory (used where they are, on torch's current
stream), anything else with DLPack, or NumPy arrays, which are copied there and back. Emulated, they are NumPy arrays
or torch tensors on the CPU. Most kernels take float32, bfloat16 and float16; mean, rstd, lse and losses are always
float32. cuda_call.py says how a call reaches its kernel.
"""

import numpy as np

from . import check, numpy_ops
from .bfloat16 import dtype_name
from .cuda_call import Call, Emulator, choose, find_rungs, strides

name = __name__.rpartition(".")[2].removesuffix("_ops")           # "cuda" or "emulated"

if name == "emulated":
    _machine = Emulator()
else:
    from .gpu import GPU
    _machine = GPU()

_OPS = [op for op in vars(numpy_ops) if op.endswith(("_forward", "_backward")) or op in ("adamw", "squared_norm")]
_rungs = {op: [rung for rung in rungs if rung.runs_on(_machine.capability)] for op, rungs in find_rungs(_OPS).items()}

# The rungs that can be chosen with kernel=, by operation. The default is the last that takes the arrays.
kernels = {op: tuple(rung.name for rung in _rungs.get(op, ())) for op in numpy_ops.kernels}


def _rung(op, x, kernel=None, D=1):
    return choose(op, _rungs[op], kernel, dtype_name(x.dtype), D)


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
