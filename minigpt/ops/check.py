"""What every op demands of its arguments: one place, so that all backends refuse the same things in the same words.

Each function raises TypeError or ValueError, naming the argument, what it was and what it must be, before any work
is done. They look at shapes and dtypes only (and at token ids, which index memory), never at the values of floats.
"""

import numpy as np

from .bfloat16 import dtype_name, is_float
from .cuda_arrays import owner

STATISTICS = ("mean", "rstd", "lse", "losses", "dloss")       # may be float32 where the other arrays are of 16 bits


def _array(op, name, x):
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{op}: {name} must be an array, not {type(x).__name__}")


def _writable(op, name, x):
    if isinstance(x, np.ndarray) and not x.flags.writeable:
        raise ValueError(f"{op}: {name} is read-only, must be writable")


def _number(op, name, x, least=None):
    if isinstance(x, bool) or not isinstance(x, (int, float, np.number)):
        raise TypeError(f"{op}: {name} is {x!r}, must be a number")
    if least is not None and not least <= x < np.inf:
        raise ValueError(f"{op}: {name} is {x}, must be finite and at least {least}")


def _integer(op, name, x, least=-2**63):
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)):
        raise TypeError(f"{op}: {name} is {x!r}, must be an integer")
    if not least <= x < 2**63:
        raise ValueError(f"{op}: {name} is {x}, must be at least {least} and less than 2^63")


def _same_dtype(op, required, **optional):
    """All arrays share one floating dtype; the optional ones may be None."""
    first = dtype = None
    for name, x in (required | optional).items():
        if x is None and name not in required:
            continue
        if type(x) is np.ndarray and x.dtype is dtype:
            continue                                          # quickly past what nearly always is the case
        _array(op, name, x)
        if not is_float(x.dtype):
            raise TypeError(f"{op}: {name} is {x.dtype}, must be floating point")
        if dtype is None:
            first, dtype = name, x.dtype
        elif x.dtype != dtype and not (name in STATISTICS and x.dtype == np.float32 and dtype.itemsize == 2):
            raise TypeError(f"{op}: {name} is {dtype_name(x.dtype)}, but {first} is {dtype_name(dtype)}; they must be "
                            "the same")


def _shape(op, name, x, shape):
    if x is not None and x.shape != shape:
        raise ValueError(f"{op}: {name} has shape {x.shape}, must be {shape}")


def _ndim(op, name, x, ndim, meaning):
    if x.ndim != ndim:
        raise ValueError(f"{op}: {name} has {x.ndim} axes (shape {x.shape}), must have {ndim}: {meaning}")


def _not_empty(op, name, x):
    if x.size == 0:
        raise ValueError(f"{op}: {name} is empty (shape {x.shape})")


def _outputs(op, name, out, count):
    """`out` or `grads` of an op with several results: None or a tuple of that many arrays."""
    if out is None:
        return (None,) * count
    if not isinstance(out, (tuple, list)) or len(out) != count:
        raise TypeError(f"{op}: {name} must be None or a tuple of {count} arrays")
    for i, x in enumerate(out):
        _writable(op, f"{name}[{i}]", x)
    return tuple(out)


def _apart(op, inputs, over=(None, None), **outputs):
    """No output shares memory with an input or another output; but for `over`, (an output, the input that it may be
    itself). (Views of one array have one base, so that nearly always comparing these is enough. Heads of one packed
    array lie between each other and share nothing: that takes an exact look.)"""
    others = dict(inputs)
    for name, y in outputs.items():
        if y is None:
            continue
        owner = y if y.base is None else y.base
        for other, x in others.items():
            if (x is not None and (x if x.base is None else x.base) is owner
                    and np.may_share_memory(x, y, max_work=100_000)
                    and not ((name, other) == over and _same_memory(x, y))):
                itself = f", or be {other} itself" * ((name, other) == over)
                raise ValueError(f"{op}: {name} overlaps {other}, must have memory of its own{itself}")
        others[name] = y


def _same_memory(x, y):
    return x.ctypes.data == y.ctypes.data and x.strides == y.strides            # and of one shape


def _kernel(op, kernel, kernels):
    if kernel is not None and kernel not in kernels[op]:
        raise ValueError(f"{op}: no kernel named {kernel!r}, there are {', '.join(kernels[op])}")


def integers(op, name, x, shape=None):
    _array(op, name, x)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{op}: {name} is {x.dtype}, must be integers")
    if shape is not None:
        _shape(op, name, x, shape)


def in_range(op, name, x, limit, allowed=None):
    """Every integer of x is in [0, limit), or is `allowed`. A GPU compares its own, and is waited for."""
    x = owner(x)
    bad = (x < 0) | (x >= limit)
    if allowed is not None:
        bad &= x != allowed
    if bad.any():
        bad = bad.cpu() if hasattr(bad, "cpu") else bad
        index = tuple(int(i) for i in np.argwhere(np.asarray(bad))[0])
        raise ValueError(f"{op}: {name}{list(index)} is {int(x[index])}, must be in 0 .. {limit - 1}")


def same_shape(op, over=None, out=None, grads=None, **arrays):
    """Elementwise ops: every array has the dtype and shape of the first, and so have the results where given, one of
    which may be the argument named `over` itself."""
    _same_dtype(op, arrays, out=out, grads=grads)
    shape = next(iter(arrays.values())).shape
    for name, x in (*arrays.items(), ("out", out), ("grads", grads)):
        _shape(op, name, x, shape)
    _writable(op, "out", out)
    _writable(op, "grads", grads)
    _apart(op, arrays, ("grads" if out is None else "out", over), out=out, grads=grads)


def swiglu_backward(dy, gate, up, grads):
    op = "swiglu_backward"
    dgate, dup = _outputs(op, "grads", grads, 2)
    same_shape(op, dy=dy, gate=gate, up=up)
    _same_dtype(op, dict(dy=dy), dgate=dgate, dup=dup)
    _shape(op, "dgate", dgate, dy.shape)
    _shape(op, "dup", dup, dy.shape)
    _apart(op, dict(dy=dy, gate=gate, up=up), dgate=dgate, dup=dup)


def embedding_forward(tokens, wte, wpe, position, out, op="embedding_forward"):
    integers(op, "tokens", tokens)
    _ndim(op, "tokens", tokens, 2, "(B, T)")
    _not_empty(op, "tokens", tokens)
    _same_dtype(op, dict(wte=wte), wpe=wpe, out=out)
    _ndim(op, "wte", wte, 2, "(V, C)")
    _not_empty(op, "wte", wte)
    _integer(op, "position", position, least=0)
    (B, T), (V, C) = tokens.shape, wte.shape
    in_range(op, "tokens", tokens, V)
    if wpe is not None:
        _ndim(op, "wpe", wpe, 2, "(P, C)")
        _shape(op, "wpe", wpe, (wpe.shape[0], C))
        if position + T > wpe.shape[0]:
            raise ValueError(f"{op}: positions {position} .. {position + T - 1} do not fit wpe's {wpe.shape[0]} rows")
    _shape(op, "out", out, (B, T, C))
    _writable(op, "out", out)
    _apart(op, dict(tokens=tokens, wte=wte, wpe=wpe), out=out)


def embedding_backward(dx, tokens, wte, wpe, position, grads):
    op = "embedding_backward"
    embedding_forward(tokens, wte, wpe, position, None, op)
    dwte, dwpe = _outputs(op, "grads", grads, 2)
    _same_dtype(op, dict(wte=wte, dx=dx), dwte=dwte, dwpe=dwpe)
    _shape(op, "dx", dx, (*tokens.shape, wte.shape[1]))
    _shape(op, "dwte", dwte, wte.shape)
    if wpe is not None:
        _shape(op, "dwpe", dwpe, wpe.shape)
    _apart(op, dict(dx=dx, tokens=tokens, wte=wte, wpe=wpe), dwte=dwte, dwpe=dwpe)


NONE = {}


def _norm(op, full, weight, row=NONE, *, bias=None, C_outputs=NONE, row_outputs=NONE, full_outputs=NONE,
          over=(None, None)):
    """`full` arrays (..., C), the weight (C,), `row` arrays (...): the arguments of a norm, as dictionaries by name;
    then its bias (C,) and its results, any of which may be None. `over`: as in _apart()."""
    inputs, outputs = {**full, "weight": weight, **row}, {**full_outputs, **row_outputs, **C_outputs}
    _same_dtype(op, inputs, bias=bias, **outputs)
    name, x = next(iter(full.items()))
    if x.ndim < 1:
        raise ValueError(f"{op}: {name} has no axes, must be (..., C)")
    _not_empty(op, name, x)
    _shape(op, "weight", weight, x.shape[-1:])
    _shape(op, "bias", bias, x.shape[-1:])
    for arrays, shape in ((full, x.shape), (full_outputs, x.shape), (C_outputs, x.shape[-1:]),
                          (row, x.shape[:-1]), (row_outputs, x.shape[:-1])):
        for name, a in arrays.items():
            _shape(op, name, a, shape)
    _apart(op, {**inputs, "bias": bias}, over, **outputs)


def layernorm_forward(x, weight, bias, eps, kernel, kernels, out):
    op = "layernorm_forward"
    _number(op, "eps", eps, least=0)
    _kernel(op, kernel, kernels)
    y, mean, rstd = _outputs(op, "out", out, 3)
    _norm(op, dict(x=x), weight, bias=bias, row_outputs=dict(mean=mean, rstd=rstd), full_outputs=dict(y=y))


def layernorm_backward(dy, x, weight, mean, rstd, kernel, kernels, grads):
    op = "layernorm_backward"
    _kernel(op, kernel, kernels)
    dx, dweight, dbias = _outputs(op, "grads", grads, 3)
    _norm(op, dict(x=x, dy=dy), weight, dict(mean=mean, rstd=rstd), C_outputs=dict(dweight=dweight, dbias=dbias),
          full_outputs=dict(dx=dx))


def rmsnorm_forward(x, weight, eps, out):
    op = "rmsnorm_forward"
    _number(op, "eps", eps, least=0)
    y, rstd = _outputs(op, "out", out, 2)
    _norm(op, dict(x=x), weight, row_outputs=dict(rstd=rstd), full_outputs=dict(y=y))


def rmsnorm_backward(dy, x, weight, rstd, grads):
    op = "rmsnorm_backward"
    dx, dweight = _outputs(op, "grads", grads, 2)
    _norm(op, dict(x=x, dy=dy), weight, dict(rstd=rstd), C_outputs=dict(dweight=dweight), full_outputs=dict(dx=dx))


def residual_layernorm_forward(x, residual, weight, bias, eps, out):
    op = "residual_layernorm_forward"
    _number(op, "eps", eps, least=0)
    h, y, mean, rstd = _outputs(op, "out", out, 4)
    _norm(op, dict(x=x, residual=residual), weight, bias=bias, row_outputs=dict(mean=mean, rstd=rstd),
          full_outputs=dict(h=h, y=y))


def residual_layernorm_backward(dh, dy, h, weight, mean, rstd, grads):
    op = "residual_layernorm_backward"
    dx, dweight, dbias = _outputs(op, "grads", grads, 3)
    _norm(op, dict(h=h, dh=dh, dy=dy), weight, dict(mean=mean, rstd=rstd),
          C_outputs=dict(dweight=dweight, dbias=dbias), full_outputs=dict(dx=dx), over=("dx", "dh"))


def _linear(op, x, weight, bias=None, **outputs):
    _same_dtype(op, dict(x=x, weight=weight), bias=bias, **outputs)
    _ndim(op, "weight", weight, 2, "(N, K)")
    N, K = weight.shape
    if x.ndim < 1 or x.shape[-1] != K:
        raise ValueError(f"{op}: x has shape {x.shape}, must be (..., {K}) for weight {weight.shape}")
    _not_empty(op, "x", x)
    _not_empty(op, "weight", weight)
    _shape(op, "bias", bias, (N,))
    for name, y in outputs.items():
        _shape(op, name, y, (*x.shape[:-1], N))
        _writable(op, name, y)
    _apart(op, dict(x=x, weight=weight, bias=bias), **outputs)


def linear_forward(x, weight, bias, kernel, kernels, out):
    op = "linear_forward"
    _kernel(op, kernel, kernels)
    _linear(op, x, weight, bias, out=out)


def linear_gelu_forward(x, weight, bias, out):
    op = "linear_gelu_forward"
    y, pre = _outputs(op, "out", out, 2)
    _linear(op, x, weight, bias, y=y, pre=pre)


def linear_backward(dy, x, weight, kernel, kernels, grads):
    op = "linear_backward"
    _kernel(op, kernel, kernels)
    dx, dweight, dbias = _outputs(op, "grads", grads, 3)
    _linear(op, x, weight)
    _same_dtype(op, dict(weight=weight, dy=dy), dx=dx, dweight=dweight, dbias=dbias)
    _shape(op, "dy", dy, (*x.shape[:-1], weight.shape[0]))
    _shape(op, "dx", dx, x.shape)
    _shape(op, "dweight", dweight, weight.shape)
    _shape(op, "dbias", dbias, weight.shape[:1])
    _apart(op, dict(dy=dy, x=x, weight=weight), dx=dx, dweight=dweight, dbias=dbias)


def rope(op, x, cos, sin, out):
    x_name, out_name = ("dy", "grads") if op == "rope_backward" else ("x", "out")
    _same_dtype(op, {x_name: x, "cos": cos, "sin": sin}, **{out_name: out})
    _ndim(op, x_name, x, 4, "(B, H, T, D)")
    _not_empty(op, x_name, x)
    if x.shape[-1] % 2:
        raise ValueError(f"{op}: the head size of {x_name} is {x.shape[-1]}, must be even")
    _shape(op, "cos", cos, (x.shape[2], x.shape[3] // 2))
    _shape(op, "sin", sin, cos.shape)
    _shape(op, out_name, out, x.shape)
    _writable(op, out_name, out)
    _apart(op, {x_name: x, "cos": cos, "sin": sin}, (out_name, x_name), **{out_name: out})


def _attention(op, q, k, v, causal, scale):
    if not isinstance(causal, (bool, np.bool_)):
        raise TypeError(f"{op}: causal is {causal!r}, must be True or False")
    for name, x in dict(q=q, k=k, v=v).items():
        _array(op, name, x)
        _ndim(op, name, x, 4, "(B, heads, T, D)")
        _not_empty(op, name, x)
    (B, H, _, D), (Hkv, Tk) = q.shape, k.shape[1:3]
    _shape(op, "k", k, (B, Hkv, Tk, D))
    _shape(op, "v", v, k.shape)
    if H % Hkv:
        raise ValueError(f"{op}: k has {Hkv} heads, which does not divide q's {H}")
    if scale is None:
        return 1.0 / D ** 0.5
    _number(op, "scale", scale)
    if not abs(scale) < 3.4e38:
        raise ValueError(f"{op}: scale is {scale}, must be finite in float32")
    return float(scale)


def attention_forward(q, k, v, causal, scale, kernel, kernels, out):
    """Returns the scale to use."""
    op = "attention_forward"
    _kernel(op, kernel, kernels)
    scale = _attention(op, q, k, v, causal, scale)
    o, lse = _outputs(op, "out", out, 2)
    _same_dtype(op, dict(q=q, k=k, v=v), out=o, lse=lse)
    _shape(op, "out", o, q.shape)
    _shape(op, "lse", lse, q.shape[:3])
    _apart(op, dict(q=q, k=k, v=v), out=o, lse=lse)
    return scale


def attention_backward(dout, q, k, v, out, lse, causal, scale, kernel, kernels, grads):
    """Returns the scale to use."""
    op = "attention_backward"
    _kernel(op, kernel, kernels)
    scale = _attention(op, q, k, v, causal, scale)
    dq, dk, dv = _outputs(op, "grads", grads, 3)
    _same_dtype(op, dict(q=q, k=k, v=v, dout=dout, out=out, lse=lse), dq=dq, dk=dk, dv=dv)
    for name, x, shape in (("dout", dout, q.shape), ("out", out, q.shape), ("lse", lse, q.shape[:3]),
                           ("dq", dq, q.shape), ("dk", dk, k.shape), ("dv", dv, v.shape)):
        _shape(op, name, x, shape)
    _apart(op, dict(dout=dout, q=q, k=k, v=v, out=out, lse=lse), dq=dq, dk=dk, dv=dv)
    return scale


def _cross_entropy(op, required, targets, ignore_index, **outputs):
    """`required` are the arrays by name, logits the first; all the others have a number per row, but for grads."""
    _same_dtype(op, required, **outputs)
    logits = required["logits"]
    if logits.ndim < 2:
        raise ValueError(f"{op}: logits has shape {logits.shape}, must be (..., V)")
    _not_empty(op, "logits", logits)
    rows = logits.shape[:-1]
    _integer(op, "ignore_index", ignore_index)
    integers(op, "targets", targets, rows)
    in_range(op, "targets", targets, logits.shape[-1], allowed=ignore_index)
    for name, x in (required | outputs).items():
        _shape(op, name, x, logits.shape if name in ("logits", "grads") else rows)
    _writable(op, "grads", outputs.get("grads"))
    _apart(op, dict(required, targets=targets), ("grads", "logits"), **outputs)


def cross_entropy_forward(logits, targets, ignore_index, out):
    op = "cross_entropy_forward"
    losses, lse = _outputs(op, "out", out, 2)
    _cross_entropy(op, dict(logits=logits), targets, ignore_index, losses=losses, lse=lse)


def cross_entropy_backward(dloss, logits, targets, lse, ignore_index, grads):
    required = dict(logits=logits, lse=lse)
    if isinstance(dloss, np.ndarray):
        required["dloss"] = dloss
    else:
        _number("cross_entropy_backward", "dloss", dloss)
    _cross_entropy("cross_entropy_backward", required, targets, ignore_index, grads=grads)


def adamw(param, grad, m, v, step, master, **numbers):
    if master is None:
        same_shape("adamw", param=param, grad=grad, m=m, v=v)
    else:
        same_shape("adamw", param=param, grad=grad)
        same_shape("adamw", m=m, v=v, master=master)
        _shape("adamw", "m", m, param.shape)
    for name, x in (("param", param), ("m", m), ("v", v), ("master", master)):
        _writable("adamw", name, x)
    _apart("adamw", dict(grad=grad), param=param, m=m, v=v, master=master)
    _integer("adamw", "step", step, least=1)
    for name, x in numbers.items():
        _number("adamw", name, x)


def squared_norm(x):
    _same_dtype("squared_norm", dict(x=x))
