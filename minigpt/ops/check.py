"""What every op demands of its arguments: one place, so that all backends refuse the same things in the same words.

Each function raises TypeError or ValueError, naming the argument, what it was and what it must be, before any work
is done. They look at shapes and dtypes only (and at token ids, which index memory), never at the values of floats.
"""

import numpy as np


def _array(op, name, x):
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{op}: {name} must be an array, not {type(x).__name__}")


def _same_dtype(op, required, **optional):
    """All arrays share one floating dtype; the optional ones may be None."""
    first = dtype = None
    for name, x in (required | optional).items():
        if x is None and name not in required:
            continue
        if dtype is not None and getattr(x, "dtype", None) is dtype:
            continue                                          # quickly past what nearly always is the case
        _array(op, name, x)
        if x.dtype.kind != "f":
            raise TypeError(f"{op}: {name} is {x.dtype}, must be floating point")
        if dtype is None:
            first, dtype = name, x.dtype
        elif x.dtype != dtype:
            raise TypeError(f"{op}: {name} is {x.dtype}, but {first} is {dtype}; they must be the same")


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
    return tuple(out)


def _kernel(op, kernel, kernels):
    if kernel is not None and kernel not in kernels[op]:
        raise ValueError(f"{op}: no kernel named {kernel!r}, there are {', '.join(kernels[op])}")


def _integers(op, name, x, shape=None):
    _array(op, name, x)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{op}: {name} is {x.dtype}, must be integers")
    if shape is not None:
        _shape(op, name, x, shape)


def _in_range(op, name, x, limit, allowed=None):
    """Every integer of x is in [0, limit), or is `allowed`."""
    bad = (x < 0) | (x >= limit)
    if allowed is not None:
        bad &= x != allowed
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{op}: {name}{list(index)} is {x[index]}, must be in 0 .. {limit - 1}")


def same_shape(op, out=None, grads=None, **arrays):
    """Elementwise ops: every array has the dtype and shape of the first, and so have the results where given."""
    _same_dtype(op, arrays, out=out, grads=grads)
    shape = next(iter(arrays.values())).shape
    for name, x in (*arrays.items(), ("out", out), ("grads", grads)):
        _shape(op, name, x, shape)


def swiglu_backward(dy, gate, up, grads):
    op = "swiglu_backward"
    dgate, dup = _outputs(op, "grads", grads, 2)
    same_shape(op, dy=dy, gate=gate, up=up)
    _same_dtype(op, dict(dy=dy), dgate=dgate, dup=dup)
    _shape(op, "dgate", dgate, dy.shape)
    _shape(op, "dup", dup, dy.shape)


def embedding_forward(tokens, wte, wpe, position, out, op="embedding_forward"):
    _integers(op, "tokens", tokens)
    _ndim(op, "tokens", tokens, 2, "(B, T)")
    _not_empty(op, "tokens", tokens)
    _same_dtype(op, dict(wte=wte), wpe=wpe, out=out)
    _ndim(op, "wte", wte, 2, "(V, C)")
    (B, T), (V, C) = tokens.shape, wte.shape
    _in_range(op, "tokens", tokens, V)
    if wpe is not None:
        _ndim(op, "wpe", wpe, 2, "(P, C)")
        _shape(op, "wpe", wpe, (wpe.shape[0], C))
        if position < 0 or position + T > wpe.shape[0]:
            raise ValueError(f"{op}: positions {position} .. {position + T - 1} do not fit wpe's {wpe.shape[0]} rows")
    _shape(op, "out", out, (B, T, C))


def embedding_backward(dx, tokens, wte, wpe, position, grads):
    op = "embedding_backward"
    embedding_forward(tokens, wte, wpe, position, None, op)
    dwte, dwpe = _outputs(op, "grads", grads, 2)
    _same_dtype(op, dict(wte=wte, dx=dx), dwte=dwte, dwpe=dwpe)
    _shape(op, "dx", dx, (*tokens.shape, wte.shape[1]))
    _shape(op, "dwte", dwte, wte.shape)
    if wpe is not None:
        _shape(op, "dwpe", dwpe, wpe.shape)


NONE = {}


def _norm(op, full, weight, row=NONE, *, C_outputs=NONE, row_outputs=NONE, full_outputs=NONE):
    """`full` arrays (..., C), the weight (C,), `row` arrays (...): the arguments of a norm, as dictionaries by name;
    then its optional arguments and its results, any of which may be None."""
    _same_dtype(op, {**full, "weight": weight, **row}, **C_outputs, **row_outputs, **full_outputs)
    name, x = next(iter(full.items()))
    if x.ndim < 1:
        raise ValueError(f"{op}: {name} has no axes, must be (..., C)")
    _not_empty(op, name, x)
    _shape(op, "weight", weight, x.shape[-1:])
    for arrays, shape in ((full, x.shape), (full_outputs, x.shape), (C_outputs, x.shape[-1:]),
                          (row, x.shape[:-1]), (row_outputs, x.shape[:-1])):
        for name, a in arrays.items():
            _shape(op, name, a, shape)


def layernorm_forward(x, weight, bias, eps, kernel, kernels, out):
    op = "layernorm_forward"
    _kernel(op, kernel, kernels)
    y, mean, rstd = _outputs(op, "out", out, 3)
    _norm(op, dict(x=x), weight, C_outputs=dict(bias=bias), row_outputs=dict(mean=mean, rstd=rstd),
          full_outputs=dict(y=y))


def layernorm_backward(dy, x, weight, mean, rstd, kernel, kernels, grads):
    op = "layernorm_backward"
    _kernel(op, kernel, kernels)
    dx, dweight, dbias = _outputs(op, "grads", grads, 3)
    _norm(op, dict(x=x, dy=dy), weight, dict(mean=mean, rstd=rstd), C_outputs=dict(dweight=dweight, dbias=dbias),
          full_outputs=dict(dx=dx))


def rmsnorm_forward(x, weight, eps, out):
    op = "rmsnorm_forward"
    y, rstd = _outputs(op, "out", out, 2)
    _norm(op, dict(x=x), weight, row_outputs=dict(rstd=rstd), full_outputs=dict(y=y))


def rmsnorm_backward(dy, x, weight, rstd, grads):
    op = "rmsnorm_backward"
    dx, dweight = _outputs(op, "grads", grads, 2)
    _norm(op, dict(x=x, dy=dy), weight, dict(rstd=rstd), C_outputs=dict(dweight=dweight), full_outputs=dict(dx=dx))


def residual_layernorm_forward(x, residual, weight, bias, eps, out):
    op = "residual_layernorm_forward"
    h, y, mean, rstd = _outputs(op, "out", out, 4)
    _norm(op, dict(x=x, residual=residual), weight, C_outputs=dict(bias=bias),
          row_outputs=dict(mean=mean, rstd=rstd), full_outputs=dict(h=h, y=y))


def residual_layernorm_backward(dh, dy, h, weight, mean, rstd, grads):
    op = "residual_layernorm_backward"
    dx, dweight, dbias = _outputs(op, "grads", grads, 3)
    _norm(op, dict(h=h, dh=dh, dy=dy), weight, dict(mean=mean, rstd=rstd),
          C_outputs=dict(dweight=dweight, dbias=dbias), full_outputs=dict(dx=dx))


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


def _attention(op, q, k, v, scale):
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
    if not np.isfinite(scale):
        raise ValueError(f"{op}: scale is {scale}, must be finite")
    return float(scale)


def attention_forward(q, k, v, scale, kernel, kernels, out):
    """Returns the scale to use."""
    op = "attention_forward"
    _kernel(op, kernel, kernels)
    scale = _attention(op, q, k, v, scale)
    o, lse = _outputs(op, "out", out, 2)
    _same_dtype(op, dict(q=q, k=k, v=v), out=o, lse=lse)
    _shape(op, "out", o, q.shape)
    _shape(op, "lse", lse, q.shape[:3])
    return scale


def attention_backward(dout, q, k, v, out, lse, scale, kernel, kernels, grads):
    """Returns the scale to use."""
    op = "attention_backward"
    _kernel(op, kernel, kernels)
    scale = _attention(op, q, k, v, scale)
    dq, dk, dv = _outputs(op, "grads", grads, 3)
    _same_dtype(op, dict(q=q, k=k, v=v, dout=dout, out=out, lse=lse), dq=dq, dk=dk, dv=dv)
    for name, x, shape in (("dout", dout, q.shape), ("out", out, q.shape), ("lse", lse, q.shape[:3]),
                           ("dq", dq, q.shape), ("dk", dk, k.shape), ("dv", dv, v.shape)):
        _shape(op, name, x, shape)
    return scale


def _cross_entropy(op, required, targets, ignore_index, **outputs):
    """`required` are the arrays by name, logits the first; all the others have a number per row, but for grads."""
    _same_dtype(op, required, **outputs)
    logits = required["logits"]
    if logits.ndim < 2:
        raise ValueError(f"{op}: logits has shape {logits.shape}, must be (..., V)")
    _not_empty(op, "logits", logits)
    rows = logits.shape[:-1]
    _integers(op, "targets", targets, rows)
    _in_range(op, "targets", targets, logits.shape[-1], allowed=ignore_index)
    for name, x in (required | outputs).items():
        _shape(op, name, x, logits.shape if name in ("logits", "grads") else rows)


def cross_entropy_forward(logits, targets, ignore_index, out):
    op = "cross_entropy_forward"
    losses, lse = _outputs(op, "out", out, 2)
    _cross_entropy(op, dict(logits=logits), targets, ignore_index, losses=losses, lse=lse)


def cross_entropy_backward(logits, targets, lse, ignore_index, grads):
    _cross_entropy("cross_entropy_backward", dict(logits=logits, lse=lse), targets, ignore_index, grads=grads)


def adamw(param, grad, m, v, step):
    same_shape("adamw", param=param, grad=grad, m=m, v=v)
    if step < 1:
        raise ValueError(f"adamw: step is {step}, must be 1 or more")


def squared_norm(x):
    _same_dtype("squared_norm", dict(x=x))
