"""The kernels as operators of torch: torch.ops.minigpt.*, with autograd, torch.compile, autocast and DTensor.

    y = torch_ops.layernorm(x, weight, bias)           # as torch.nn.functional.layer_norm, by the kernels of csrc/

Tensors are handed over where they lie, without a copy: on a GPU to the CUDA kernels, on torch's current stream; on the
CPU to the C++ kernels; in float64 on the CPU to NumPy, the specification (which is what gradcheck runs on). The CPU
kernels know float32 only: bfloat16 and float16 are widened for them and rounded afterwards.

Each op is two custom operators, <op>_forward and <op>_backward, with the signatures of numpy_ops.py. torch sees neither
kernels nor arrays, only what comes out: the `fake` of an operator says shapes and dtypes, its `backward` which operator
gives the gradients, its sharding which axes may be cut. This is the only file of minigpt.ops that imports torch.
"""

import numpy as np
import torch
from torch import Tensor

from . import load, why_not
from .budget import OUTPUTS
from .check import STATISTICS

SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def _run(op, *arguments):
    """Calls an op of the mirror on tensors; the results are tensors on the same device."""
    like = max((x for x in arguments if isinstance(x, Tensor) and x.is_floating_point()), key=lambda x: x.ndim)
    if like.is_cuda:
        return getattr(load("cuda"), op)(*arguments)
    backend = "numpy" if like.dtype == torch.float64 or why_not("cpp") else "cpp"
    results = getattr(load(backend), op)(*map(_array, arguments))
    if not isinstance(results, tuple):
        return _tensor(results, like.dtype)
    return tuple(_tensor(x, _dtype(name, like)) for name, x in zip(OUTPUTS[op], results, strict=True))


def _array(x):
    """A CPU tensor as an array over the same memory (or widened); all else as it is. Not by .numpy(), after which torch
    could not free the memory by hand, as FSDP does with the weights of a layer that is done."""
    if not isinstance(x, Tensor):
        return x
    return np.from_dlpack((x.float() if x.dtype in SIXTEEN_BITS else x).detach())


def _tensor(x, dtype):
    return torch.from_numpy(np.asarray(x)).contiguous().to(dtype)


def _dtype(output, like):
    """Statistics stay float32 where the arrays are of 16 bits."""
    return torch.float32 if output in STATISTICS and like.dtype in SIXTEEN_BITS else like.dtype


def _fake(output, like, shape):
    return like.new_empty(shape, dtype=_dtype(output, like))


def _autocast(policy, *tensors):
    """Under torch.autocast, the tensors in the dtype that torch takes for ops of this kind: "lower" the one of the
    autocast, "float32", or "widest" of those given. Elsewhere as they are: mixed dtypes are the caller's mistake."""
    given = [x for x in tensors if x is not None]
    device = given[0].device.type
    if not torch.is_autocast_enabled(device) or any(x.dtype == torch.float64 for x in given):
        return tensors
    dtype = {"lower": torch.get_autocast_dtype(device), "float32": torch.float32}.get(policy)
    if dtype is None:
        dtype = torch.float32 if any(x.dtype == torch.float32 for x in given) else given[0].dtype
    return tuple(x if x is None else x.to(dtype) for x in tensors)


def _operator(function):
    return torch.library.custom_op(f"minigpt::{function.__name__}", function, mutates_args=())


# ---------------------------------------------------------------------------------------------------------------
# layernorm, rmsnorm, residual_layernorm


@_operator
def layernorm_forward(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _run("layernorm_forward", x, weight, bias, eps)


@layernorm_forward.register_fake
def _(x, weight, bias, eps):
    return x.new_empty(x.shape), *(_fake(name, x, x.shape[:-1]) for name in ("mean", "rstd"))


@_operator
def layernorm_backward(dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor,
                       rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _run("layernorm_backward", dy, x, weight, mean, rstd)


@layernorm_backward.register_fake
def _(dy, x, weight, mean, rstd):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _layernorm_context(ctx, inputs, output):
    x, weight, bias, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.has_bias = bias is not None


def _layernorm_gradients(ctx, dy, *_):
    dx, dweight, dbias = layernorm_backward(dy, *ctx.saved_tensors)
    return dx, dweight, dbias if ctx.has_bias else None, None


layernorm_forward.register_autograd(_layernorm_gradients, setup_context=_layernorm_context)


def layernorm(x, weight, bias=None, eps=1e-5):
    """x (..., C), weight (C,), bias (C,) or None -> y (..., C)."""
    return layernorm_forward(*_autocast("float32", x, weight, bias), eps)[0]


@_operator
def rmsnorm_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _run("rmsnorm_forward", x, weight, eps)


@rmsnorm_forward.register_fake
def _(x, weight, eps):
    return x.new_empty(x.shape), _fake("rstd", x, x.shape[:-1])


@_operator
def rmsnorm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return _run("rmsnorm_backward", dy, x, weight, rstd)


@rmsnorm_backward.register_fake
def _(dy, x, weight, rstd):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _rmsnorm_context(ctx, inputs, output):
    x, weight, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, output[1])


def _rmsnorm_gradients(ctx, dy, _):
    return *rmsnorm_backward(dy, *ctx.saved_tensors), None


rmsnorm_forward.register_autograd(_rmsnorm_gradients, setup_context=_rmsnorm_context)


def rmsnorm(x, weight, eps=1e-5):
    """x (..., C), weight (C,) -> y (..., C)."""
    return rmsnorm_forward(*_autocast("float32", x, weight), eps)[0]


@_operator
def residual_layernorm_forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None,
                               eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _run("residual_layernorm_forward", x, residual, weight, bias, eps)


@residual_layernorm_forward.register_fake
def _(x, residual, weight, bias, eps):
    return x.new_empty(x.shape), x.new_empty(x.shape), *(_fake(name, x, x.shape[:-1]) for name in ("mean", "rstd"))


@_operator
def residual_layernorm_backward(dh: Tensor, dy: Tensor, h: Tensor, weight: Tensor, mean: Tensor,
                                rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _run("residual_layernorm_backward", dh, dy, h, weight, mean, rstd)


@residual_layernorm_backward.register_fake
def _(dh, dy, h, weight, mean, rstd):
    return h.new_empty(h.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _residual_layernorm_context(ctx, inputs, output):
    _, _, weight, bias, _ = inputs
    h, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(h, weight, mean, rstd)
    ctx.has_bias = bias is not None


def _residual_layernorm_gradients(ctx, dh, dy, *_):
    dx, dweight, dbias = residual_layernorm_backward(dh, dy, *ctx.saved_tensors)
    return dx, dx, dweight, dbias if ctx.has_bias else None, None


residual_layernorm_forward.register_autograd(_residual_layernorm_gradients, setup_context=_residual_layernorm_context)


def residual_layernorm(x, residual, weight, bias=None, eps=1e-5):
    """h = x + residual, y = layernorm(h). x, residual (..., C) -> h (..., C), y (..., C)."""
    return residual_layernorm_forward(*_autocast("float32", x, residual, weight, bias), eps)[:2]


# ---------------------------------------------------------------------------------------------------------------
# activations


@_operator
def gelu_forward(x: Tensor) -> Tensor:
    return _run("gelu_forward", x)


@gelu_forward.register_fake
def _(x):
    return x.new_empty(x.shape)


@_operator
def gelu_backward(dy: Tensor, x: Tensor) -> Tensor:
    return _run("gelu_backward", dy, x)


@gelu_backward.register_fake
def _(dy, x):
    return x.new_empty(x.shape)


gelu_forward.register_autograd(lambda ctx, dy: gelu_backward(dy, *ctx.saved_tensors),
                               setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def gelu(x):
    """The tanh form. Any shape."""
    return gelu_forward(x)


@_operator
def swiglu_forward(gate: Tensor, up: Tensor) -> Tensor:
    return _run("swiglu_forward", gate, up)


@swiglu_forward.register_fake
def _(gate, up):
    return gate.new_empty(gate.shape)


@_operator
def swiglu_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return _run("swiglu_backward", dy, gate, up)


@swiglu_backward.register_fake
def _(dy, gate, up):
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


swiglu_forward.register_autograd(lambda ctx, dy: swiglu_backward(dy, *ctx.saved_tensors),
                                 setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def swiglu(gate, up):
    """gate * sigmoid(gate) * up. gate, up (..., F) -> (..., F)."""
    return swiglu_forward(*_autocast("widest", gate, up))


# ---------------------------------------------------------------------------------------------------------------
# rope


@_operator
def rope_forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _run("rope_forward", x, cos, sin)


@rope_forward.register_fake
def _(x, cos, sin):
    return x.new_empty(x.shape)


@_operator
def rope_backward(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _run("rope_backward", dy, cos, sin)


@rope_backward.register_fake
def _(dy, cos, sin):
    return dy.new_empty(dy.shape)


rope_forward.register_autograd(lambda ctx, dy: (rope_backward(dy, *ctx.saved_tensors), None, None),
                               setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[1:]))


def rope(x, cos, sin):
    """x (B, H, T, D), cos and sin (T, D/2), which have no gradient (numpy_ops.rope_tables) -> (B, H, T, D)."""
    return rope_forward(*_autocast("widest", x, cos, sin))


# ---------------------------------------------------------------------------------------------------------------
# attention


@_operator
def attention_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    return _run("attention_forward", q, k, v, causal, scale)


@attention_forward.register_fake
def _(q, k, v, causal, scale):
    return q.new_empty(q.shape), _fake("lse", q, q.shape[:3])


@_operator
def attention_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool,
                       scale: float | None) -> tuple[Tensor, Tensor, Tensor]:
    return _run("attention_backward", dout, q, k, v, out, lse, causal, scale)


@attention_backward.register_fake
def _(dout, q, k, v, out, lse, causal, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _attention_context(ctx, inputs, output):
    q, k, v, ctx.causal, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output)


def _attention_gradients(ctx, dout, _):
    return *attention_backward(dout, *ctx.saved_tensors, ctx.causal, ctx.scale), None, None


attention_forward.register_autograd(_attention_gradients, setup_context=_attention_context)


def attention(q, k, v, causal=True, scale=None):
    """As numpy_ops.attention_forward: q (B, H, Tq, D), k and v (B, Hkv, Tk, D) -> out (B, H, Tq, D)."""
    return attention_forward(*_autocast("lower", q, k, v), causal, scale)[0]


# ---------------------------------------------------------------------------------------------------------------
# cross-entropy


@_operator
def cross_entropy_forward(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    return _run("cross_entropy_forward", logits, targets, ignore_index)


@cross_entropy_forward.register_fake
def _(logits, targets, ignore_index):
    return tuple(_fake(name, logits, targets.shape) for name in ("losses", "lse"))


@_operator
def cross_entropy_backward(dloss: Tensor, logits: Tensor, targets: Tensor, lse: Tensor, ignore_index: int) -> Tensor:
    return _run("cross_entropy_backward", dloss, logits, targets, lse, ignore_index)


@cross_entropy_backward.register_fake
def _(dloss, logits, targets, lse, ignore_index):
    return logits.new_empty(logits.shape)


def _cross_entropy_context(ctx, inputs, output):
    logits, targets, ctx.ignore_index = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, targets, output[1])


def _cross_entropy_gradients(ctx, dlosses, _):
    return cross_entropy_backward(dlosses, *ctx.saved_tensors, ctx.ignore_index), None, None


cross_entropy_forward.register_autograd(_cross_entropy_gradients, setup_context=_cross_entropy_context)


def cross_entropy(logits, targets, ignore_index=-100):
    """logits (..., V), targets (...) integers -> the loss of each row (...), 0 where the target is ignore_index."""
    return cross_entropy_forward(*_autocast("float32", logits), targets, ignore_index)[0]


# ---------------------------------------------------------------------------------------------------------------
# DTensor: along which axes tensors may be cut into shards, one a device, so that every device computes its part alone

# What each operator gives and takes, a letter a tensor: s is cut, r is whole on every device, p (a gradient of what is
# whole) is a sum that the devices hold parts of. Cut are: heads along batch and heads, rows along all axes but the
# last, elementwise ops along any.
_SHARDINGS = (
    (layernorm_forward, "rows", "sss", "srr"), (layernorm_backward, "rows", "spp", "ssrss"),
    (rmsnorm_forward, "rows", "ss", "sr"), (rmsnorm_backward, "rows", "sp", "ssrs"),
    (residual_layernorm_forward, "rows", "ssss", "ssrr"), (residual_layernorm_backward, "rows", "spp", "sssrss"),
    (gelu_forward, "any", "s", "s"), (gelu_backward, "any", "s", "ss"),
    (swiglu_forward, "any", "s", "ss"), (swiglu_backward, "any", "ss", "sss"),
    (rope_forward, "heads", "s", "srr"), (rope_backward, "heads", "s", "srr"),
    (attention_forward, "heads", "ss", "sss"), (attention_backward, "heads", "sss", "ssssss"),
    (cross_entropy_forward, "rows", "ss", "ss"), (cross_entropy_backward, "rows", "s", "ssss"),
)


def _register_sharding(operator, axes, outputs, inputs):
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    @register_sharding(operator._opoverload)
    def _(*arguments):
        """The ways to lay out the outputs and the inputs: all whole, or cut along one of the axes."""
        is_tensor = [hasattr(x, "ndim") for x in arguments]
        tensors = [x for x, is_one in zip(arguments, is_tensor, strict=True) if is_one]

        def layout(placement):
            letters = iter(inputs)
            return ([placement[letter] for letter in outputs],
                    [placement[next(letters)] if is_one else None for is_one in is_tensor])

        whole = Replicate()
        layouts = [layout(dict(s=whole, r=whole, p=whole))]
        ndim = max(x.ndim for x in tensors)
        for axis in range({"rows": ndim - 1, "any": ndim, "heads": 2}[axes]):
            if all(x.shape[axis] % x.mesh.size() == 0 for x, how in zip(tensors, inputs, strict=False) if how == "s"):
                layouts.append(layout(dict(s=Shard(axis), r=whole, p=Partial())))
        return layouts


if torch.distributed.is_available():
    for _sharding in _SHARDINGS:
        _register_sharding(*_sharding)
