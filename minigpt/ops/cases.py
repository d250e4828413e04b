"""Arguments to try every op on: `cases(op)` gives calls as dictionaries of arguments, by name.

The numbers are chosen to betray mistakes. Nothing has mean 0, rows differ in scale, weights are not 1 (with dy = 1 and
weight = 1 the gradient of a layernorm is about 0, whatever the kernel does). Sizes are ragged: 1, and one more or less
than the tiles and vectors that kernels like. Backward ops get what the forward op really saves.
`tests/test_mirror.py` and `minigpt diff` run all of them.
"""

from dataclasses import dataclass

import numpy as np

from . import numpy_ops


@dataclass
class Case:
    op: str
    name: str
    arguments: dict

    def __str__(self):
        return f"{self.op} [{self.name}]"


def numbers(rng, *shape, mean=0.5, spread=1.0, decades=0.5):
    """Normal numbers about `mean`, in rows (all axes but the last) whose scales differ by up to 2 * `decades` powers
    of ten."""
    scale = 10 ** rng.uniform(-decades, decades, (*shape[:-1], 1))
    return ((rng.normal(size=shape) * spread + mean) * scale).astype(np.float32)


def parameters(rng, *shape):
    return rng.normal(0.7, 0.5, shape).astype(np.float32)


def _embedding(rng, backward):
    # (B, T), (V, C), rows of wpe or None, position, dtype of the tokens
    for B, T, V, C, P, position, dtype in ((1, 1, 1, 1, None, 0, np.int64), (2, 17, 5, 33, 20, 3, np.int64),
                                           (3, 65, 40, 64, None, 0, np.int32), (1, 3, 7, 130, 3, 0, np.uint16),
                                           (4, 63, 9, 48, 63, 0, np.int64), (5, 63, 300, 3, None, 0, np.int64),
                                           (5, 130, 11, 257, 133, 2, np.int64)):
        tokens = rng.integers(0, V, (B, T)).astype(dtype)                     # V < T: tokens repeat
        wpe = None if P is None else numbers(rng, P, C)
        arguments = dict(tokens=tokens, wte=numbers(rng, V, C), wpe=wpe, position=position)
        if backward:
            arguments = dict(dx=numbers(rng, B, T, C), **arguments)
        yield f"{dtype.__name__} tokens ({B}, {T}), wte ({V}, {C}), wpe {P}", arguments


NORM_SHAPES = ((1, 2), (3, 5), (2, 3, 17), (1, 63), (65, 64), (5, 129), (257, 48), (7, 768), (3, 1000), (2, 16388),
               (1100, 12))


def _norm_inputs(rng):
    """(name, x, eps): ragged sizes, then the rows that norms get wrong."""
    for shape in NORM_SHAPES:
        yield f"x {shape}", numbers(rng, *shape), 1e-5
    yield "x far from 0", numbers(rng, 9, 80, mean=100, decades=0), 1e-5
    yield "x tiny beside eps", numbers(rng, 9, 80) * np.float32(1e-3), 1e-3
    x = numbers(rng, 5, 33)
    x[1], x[3] = 3, 0
    yield "rows of equal numbers", x, 1e-5
    yield "x large", numbers(rng, 6, 70) * np.float32(1e12), 1e-5


def _layernorm(rng, op):
    for i, (name, x, eps) in enumerate(_norm_inputs(rng)):
        C = x.shape[-1]
        weight, bias = parameters(rng, C), parameters(rng, C)
        if op == "layernorm_forward":
            yield name, dict(x=x, weight=weight, bias=bias if i % 3 else None, eps=eps)
        elif op == "layernorm_backward":
            _, mean, rstd = numpy_ops.layernorm_forward(x, weight, bias, eps)
            yield name, dict(dy=numbers(rng, *x.shape), x=x, weight=weight, mean=mean, rstd=rstd)
        elif op == "residual_layernorm_forward":
            residual = numbers(rng, *x.shape) * np.abs(x).max()
            yield name, dict(x=x, residual=residual, weight=weight, bias=bias if i % 3 else None, eps=eps)
        elif op == "residual_layernorm_backward":
            _, mean, rstd = numpy_ops.layernorm_forward(x, weight, bias, eps)
            dh, dy = numbers(rng, *x.shape), numbers(rng, *x.shape)
            yield name, dict(dh=dh * rstd[..., None], dy=dy, h=x, weight=weight, mean=mean, rstd=rstd)
        elif op == "rmsnorm_forward":
            yield name, dict(x=x, weight=weight, eps=eps)
        elif op == "rmsnorm_backward":
            _, rstd = numpy_ops.rmsnorm_forward(x, weight, eps)
            yield name, dict(dy=numbers(rng, *x.shape), x=x, weight=weight, rstd=rstd)


def _linear(rng, op):
    # the axes of x before the last, K, N: odd sizes; one row (decoding); sizes that cross the blocks of the fast rungs
    for rows, K, N in (((1,), 1, 1), ((3,), 5, 7), ((2, 3), 17, 33), ((65,), 64, 63), ((17,), 129, 65),
                       ((1,), 300, 130), ((5, 13), 48, 64), ((70,), 600, 17), ((9,), 31, 520), ((258,), 20, 6),
                       ((1030,), 3, 7), ((10,), 5, 3100)):
        x, weight, bias = numbers(rng, *rows, K), parameters(rng, N, K), parameters(rng, N)
        name = f"x {(*rows, K)}, weight {(N, K)}"
        if op == "linear_backward":
            yield name, dict(dy=numbers(rng, *rows, N), x=x, weight=weight)
        else:
            yield f"{name}, bias", dict(x=x, weight=weight, bias=bias)
            if K % 2:
                yield name, dict(x=x, weight=weight)


ELEMENTWISE_SHAPES = ((1,), (3, 5), (2, 7, 17), (65,), (33, 129), (4, 4099))


def _elementwise(rng, op):
    """gelu and swiglu: numbers of every size, the flat tails of the functions among them."""
    for shape in ELEMENTWISE_SHAPES:
        x = numbers(rng, *shape, spread=3)
        x.flat[::7] *= 10
        x.flat[3::11] *= 1e-20
        if op == "gelu_forward":
            yield f"x {shape}", dict(x=x)
        elif op == "gelu_backward":
            yield f"x {shape}", dict(dy=numbers(rng, *shape), x=x)
        elif op == "swiglu_forward":
            yield f"gate {shape}", dict(gate=x, up=numbers(rng, *shape))
        elif op == "swiglu_backward":
            yield f"gate {shape}", dict(dy=numbers(rng, *shape), gate=x, up=numbers(rng, *shape))


def _rope(rng, backward):
    for B, H, T, D, position in ((1, 1, 1, 2, 0), (2, 3, 17, 6, 0), (1, 2, 65, 64, 1000), (2, 5, 3, 80, 7),
                                 (1, 1, 129, 34, 0)):
        cos, sin = numpy_ops.rope_tables(T, D, position=position)
        x = numbers(rng, B, H, T, D)
        yield f"x {x.shape}, position {position}", {"dy" if backward else "x": x, "cos": cos, "sin": sin}


# B, H, Hkv, Tq, Tk, D, causal, scale
ATTENTION_SHAPES = (
    (1, 1, 1, 1, 1, 1, True, None),
    (2, 2, 2, 3, 3, 5, True, None),
    (1, 2, 2, 17, 17, 16, True, None),
    (1, 2, 2, 17, 17, 16, False, 0.3),
    (1, 4, 2, 63, 63, 24, True, None),       # grouped heads
    (1, 6, 2, 65, 65, 64, True, None),
    (2, 3, 1, 33, 33, 40, False, None),      # one key head for all
    (1, 2, 2, 129, 129, 20, True, None),
    (1, 1, 1, 150, 150, 128, True, None),
    (1, 2, 1, 1, 65, 64, True, None),        # one new query over a cache
    (1, 2, 2, 5, 70, 33, True, None),        # Tq < Tk
    (1, 2, 1, 7, 129, 12, False, None),
    (1, 2, 1, 70, 5, 12, True, None),        # Tq > Tk: the first 65 queries see nothing
    (1, 1, 1, 129, 64, 48, True, None),
    (1, 2, 2, 66, 3, 9, False, None),
    (1, 1, 1, 20, 20, 256, True, 1 / 256),
    (3, 2, 2, 9, 9, 7, True, 1.0),
    (4, 8, 4, 35, 35, 8, True, None),        # many heads: no need to share one out
    (1, 1, 1, 300, 270, 6, True, None),      # many tiles both ways
    (1, 2, 2, 33, 45, 16, True, -0.4),       # the largest product is the smallest score
)


def attention_inputs(rng, B, H, Hkv, Tq, Tk, D, peaked=False):
    """q, k, v. Scores are about as large as in a trained model; where `peaked`, so large that exp overflows without the
    maximum taken away, growing along the keys so that the running maximum rises tile after tile."""
    q = numbers(rng, B, H, Tq, D, mean=0.1, decades=0.2)
    k, v = (numbers(rng, B, Hkv, Tk, D, decades=0.2) for _ in range(2))
    if peaked:
        k *= np.linspace(1, 30, Tk, dtype=np.float32)[:, None]
    return q, k, v


def _attention(rng, backward):
    shapes = [(False, shape) for shape in ATTENTION_SHAPES]
    shapes += [(True, (1, 2, 1, 110, 400, 16, True, None)), (True, (1, 2, 1, 20, 90, 17, False, 0.5))]
    for peaked, (B, H, Hkv, Tq, Tk, D, causal, scale) in shapes:
        q, k, v = attention_inputs(rng, B, H, Hkv, Tq, Tk, D, peaked)
        arguments = dict(q=q, k=k, v=v, causal=causal, scale=scale)
        if backward:
            out, lse = numpy_ops.attention_forward(**arguments)
            arguments = dict(dout=numbers(rng, *q.shape, mean=0.1), out=out, lse=lse, **arguments)
        yield (f"q {q.shape}, k {k.shape}" + ", causal" * causal + f", scale {scale}" * (scale is not None)
               + ", large scores" * peaked), arguments


def _cross_entropy(rng, backward):
    for shape, V, kind in (((1,), 1, ""), ((3,), 5, ""), ((2, 9), 17, "some ignored"), ((65,), 129, "some ignored"),
                           ((257,), 33, "some ignored"), ((4,), 1000, "all ignored"), ((3,), 50257, "some ignored"),
                           ((17,), 65, "large logits"), ((17,), 65, "logits of -inf"),
                           ((3,), 17, "a row of -inf")):
        logits = numbers(rng, *shape, V, mean=2, spread=3, decades=0.2)
        targets = rng.integers(0, V, shape)
        if "ignored" in kind:
            targets[rng.random(shape) < (0.3 if kind == "some ignored" else 2)] = -100
        if kind == "large logits":
            logits *= 40
        if kind == "logits of -inf":
            logits[np.arange(V) != targets[:, None]] = -np.inf              # all but the target,
            logits[::2, :40] = numbers(rng, len(logits[::2]), 40)           # and in every other row 40 more
        if kind == "a row of -inf":
            logits[1] = -np.inf                                             # no softmax: NaN
        arguments = dict(logits=logits, targets=targets)
        if backward:
            lse = numpy_ops.cross_entropy_forward(logits, targets)[1]
            dloss = numbers(rng, *shape) if kind == "large logits" else 0.37             # a number for each row, or one
            arguments = dict(dloss=dloss, **arguments, lse=lse)
        yield f"logits {logits.shape} {kind}".strip(), arguments


def _adamw(rng):
    for n, step, weight_decay, grad_scale in (((1,), 1, 0.0, 1.0), ((3, 5), 1, 0.1, 1.0), ((65, 63), 7, 0.1, 0.25),
                                              ((4099,), 1000, 0.0, 1.0), ((1000, 33), 3, 0.01, 3.0)):
        m = numbers(rng, *n, mean=0) * 0 if step == 1 else numbers(rng, *n, mean=0) * np.float32(0.1)
        yield (f"{n}, step {step}, weight_decay {weight_decay}, grad_scale {grad_scale}",
               dict(param=numbers(rng, *n), grad=numbers(rng, *n, mean=0.1), m=m, v=m * m * np.float32(1.5), step=step,
                    lr=3e-2, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=weight_decay, grad_scale=grad_scale))


def _squared_norm(rng):
    for shape in ((1,), (3, 5), (4097,), (130, 1001)):
        yield f"x {shape}", dict(x=numbers(rng, *shape))


# N, E, k, gate, normalize, scale, groups, active groups, and the C and F of the experts
MOE_SHAPES = (
    (1, 1, 1, "softmax", True, 1.0, 1, 1, 1, 1),
    (3, 4, 2, "softmax", True, 1.0, 1, 1, 5, 7),
    (5, 3, 3, "sigmoid", True, 2.5, 1, 1, 3, 2),          # every expert is active
    (17, 8, 1, "softmax", False, 1.0, 1, 1, 17, 9),       # Switch
    (33, 8, 2, "sigmoid", True, 1.0, 1, 1, 16, 24),
    (65, 16, 4, "sigmoid", True, 2.5, 4, 2, 33, 20),      # DeepSeek-V3's groups
    (63, 6, 2, "softmax", False, 0.5, 3, 2, 24, 40),
    (129, 70, 3, "sigmoid", False, 1.0, 1, 1, 20, 17),    # more experts than some get rows
    (300, 4, 2, "softmax", True, 1.0, 1, 1, 64, 130),
)


def _moe(rng, op):
    """Biases as large as the scores themselves, so that who is chosen and with which gate are different questions."""
    for i, (N, E, k, gate, normalize, scale, groups, active_groups, C, F) in enumerate(MOE_SHAPES):
        logits, bias = rng.normal(0.3, 0.8, (N, E)).astype(np.float32), rng.normal(0, 0.3, E).astype(np.float32)
        options = dict(gate=gate, normalize=normalize, scale=scale)
        arguments = dict(logits=logits, k=k, bias=bias if i % 3 else None, **options, groups=groups,
                         active_groups=active_groups)
        gates, experts = numpy_ops.moe_router_forward(**arguments)
        x = numbers(rng, N, C)
        rows, place, offsets = numpy_ops.moe_dispatch_forward(x, experts, E)
        segments = dict(x=rows, weight=parameters(rng, E, F, C), offsets=offsets)
        yield f"N {N}, E {E}, k {k}, {gate}, C {C}, F {F}", {
            "moe_router_forward": arguments,
            "moe_router_backward": dict(dgates=numbers(rng, N, k), logits=logits, experts=experts, **options),
            "router_losses_forward": dict(logits=logits, experts=experts, gate=gate),
            "router_losses_backward": dict(dbalance=0.7, dz=0.3, logits=logits, experts=experts, gate=gate),
            "moe_dispatch_forward": dict(x=x, experts=experts, n_expert=E),
            "moe_dispatch_backward": dict(drows=numbers(rng, N * k, C), place=place),
            "grouped_linear_forward": segments,
            "grouped_linear_backward": dict(dy=numbers(rng, N * k, F), **segments),
            "moe_combine_forward": dict(rows=rows, gates=gates, place=place),
            "moe_combine_backward": dict(dy=numbers(rng, N, C), rows=rows, gates=gates, place=place),
        }[op]


MAKERS = {
    "embedding_forward": lambda rng, op: _embedding(rng, False),
    "embedding_backward": lambda rng, op: _embedding(rng, True),
    "layernorm_forward": _layernorm,
    "layernorm_backward": _layernorm,
    "rmsnorm_forward": _layernorm,
    "rmsnorm_backward": _layernorm,
    "residual_layernorm_forward": _layernorm,
    "residual_layernorm_backward": _layernorm,
    "linear_forward": _linear,
    "linear_backward": _linear,
    "linear_gelu_forward": _linear,
    "gelu_forward": _elementwise,
    "gelu_backward": _elementwise,
    "swiglu_forward": _elementwise,
    "swiglu_backward": _elementwise,
    "rope_forward": lambda rng, op: _rope(rng, False),
    "rope_backward": lambda rng, op: _rope(rng, True),
    "attention_forward": lambda rng, op: _attention(rng, False),
    "attention_backward": lambda rng, op: _attention(rng, True),
    "cross_entropy_forward": lambda rng, op: _cross_entropy(rng, False),
    "cross_entropy_backward": lambda rng, op: _cross_entropy(rng, True),
    "adamw": lambda rng, op: _adamw(rng),
    "squared_norm": lambda rng, op: _squared_norm(rng),
    **dict.fromkeys((
        "moe_router_forward", "moe_router_backward", "router_losses_forward", "router_losses_backward",
        "moe_dispatch_forward", "moe_dispatch_backward", "grouped_linear_forward", "grouped_linear_backward",
        "moe_combine_forward", "moe_combine_backward"), _moe),
}


def cases(op, seed=0):
    """The calls to try `op` on, the same ones for the same seed: a list of Case."""
    rng = np.random.default_rng(seed)
    return [Case(op, name, arguments) for name, arguments in MAKERS[op](rng, op)]
