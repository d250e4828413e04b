"""Error budgets of kernels that keep their numbers in 16 bits: at most twice the error of a plain version of theirs.

bfloat16 has 8 significant bits, float16 11. A kernel reads such numbers, multiplies them exactly, adds up in float32
and rounds what it writes. Attention rounds once more, in the middle: the tensor cores want the probabilities P in 16
bits, and dS on the way back. So the plain version is numpy_ops in float32, rounded in these places.

Errors are compared element by element, in units of what is unavoidable there (as in budget.py, with the half ulp of
16 bits): `worst` is the largest such error that the plain version makes, and a kernel's may be 2 * worst. It is at
least 1, for the plain version may be lucky in a small array. Results that are float32 all the same, like lse, and the
sum of squares have the budget of float32: nothing was rounded on the way to them.
"""

import numpy as np

from . import budget as budget32
from . import cases as cases32
from . import numpy_ops
from .bfloat16 import BFLOAT16, to_bfloat16, to_float32
from .check import STATISTICS

K = 2
RUNS = 16
STORED = {"bfloat16": BFLOAT16, "float16": np.dtype(np.float16)}
HALF_ULP = {"bfloat16": 2.0**-9, "float16": 2.0**-12}            # of 1
SMALLEST = {"bfloat16": 2.0**-133, "float16": 2.0**-24}          # below this numbers are rounded to 0 or to this


def to_stored(x, dtype):
    """float32 -> the 16 bits of `dtype`."""
    with np.errstate(over="ignore"):
        return to_bfloat16(x) if dtype == "bfloat16" else x.astype(np.float16)


def rounded(x, dtype):
    """float32 -> the nearest numbers of `dtype`, in float32."""
    return to_float32(to_stored(x, dtype))


def stored(arguments, dtype):
    """The arguments of a call as a kernel takes them: all but statistics in 16 bits."""
    return _but_statistics(arguments, lambda x: to_stored(x, dtype))


def _but_statistics(arguments, change):
    changed = budget32.convert(arguments, change)
    return {name: arguments[name] if name in STATISTICS else x for name, x in changed.items()}


def cases(op, dtype):
    """The calls of cases.py with numbers that 16 bits can hold, in float32; those that overflow are left out."""
    for case in cases32.cases(op):
        arguments = _but_statistics(case.arguments, lambda x: rounded(x, dtype))
        if op == "attention_backward":    # what the forward pass saves must be that of these numbers
            given = {name: arguments[name] for name in ("q", "k", "v", "causal", "scale")}
            out, arguments["lse"] = numpy_ops.attention_forward(**given)
            arguments["out"] = rounded(out, dtype)
        if op == "cross_entropy_backward":
            _, arguments["lse"] = numpy_ops.cross_entropy_forward(arguments["logits"], arguments["targets"])
        if all(np.isfinite(x).sum() == np.isfinite(arguments[name]).sum()
               for name, x in case.arguments.items() if isinstance(x, np.ndarray)):
            yield cases32.Case(op, f"{case.name}, {dtype}", arguments)


def _plain(op, arguments, dtype):
    """The results of the plain version, in float32."""
    narrow = {"attention_forward": _attention_forward, "attention_backward": _attention_backward}.get(op)
    results = narrow(dtype, **arguments) if narrow else budget32.run(numpy_ops, op, arguments)
    return [x if x is None else rounded(np.asarray(x), dtype) for x in results]


def _scores(q, k, causal, scale):
    """scale q k^T with heads by group, -inf behind the mask: (B, Hkv, G, Tq, Tk)."""
    (B, H, Tq, D), (Hkv, Tk) = q.shape, k.shape[1:3]
    s = np.float32(scale or D**-0.5) * (q.reshape(B, Hkv, H // Hkv, Tq, D) @ k[:, :, None].mT)
    return np.where(np.tri(Tq, Tk, Tk - Tq, dtype=bool), s, np.float32(-np.inf)) if causal else s


def _attention_forward(dtype, q, k, v, causal, scale):
    s = _scores(q, k, causal, scale)
    m = s.max(axis=-1, keepdims=True)
    p = np.exp(s - np.where(m == -np.inf, 0, m))
    l = p.sum(axis=-1, keepdims=True)
    return (rounded(p, dtype) @ v[:, :, None] / np.where(l == 0, 1, l)).reshape(q.shape), np.zeros(q.shape[:3])


def _attention_backward(dtype, dout, q, k, v, out, lse, causal, scale):
    s = _scores(q, k, causal, scale)
    by_group = (*s.shape[:-1], q.shape[-1])
    qg, dog = q.reshape(by_group), dout.reshape(by_group)
    p = np.exp(s - np.where(lse == -np.inf, 0, lse).reshape(*s.shape[:-1], 1))
    delta = (dout * out).sum(axis=-1).reshape(*s.shape[:-1], 1)
    ds = rounded(p * (dog @ v[:, :, None].mT - delta), dtype)
    scale = np.float32(scale or q.shape[-1]**-0.5)
    return (scale * (ds @ k[:, :, None]).reshape(q.shape), scale * (ds.mT @ qg).sum(axis=2),
            (rounded(p, dtype).mT @ dog).sum(axis=2))


def budget(op, arguments, dtype):
    """As budget.budget: what is expected of each result, and how far it may be from it. `arguments` in float32."""
    if op == "residual_layernorm_forward":                       # the norm is that of h as it is stored
        x, residual, of_norm = arguments["x"], arguments["residual"], ("weight", "bias", "eps")
        normed = dict(x=rounded(x + residual, dtype), **{name: arguments[name] for name in of_norm})
        return [*_budget(op, arguments, dtype)[:1], *_budget("layernorm_forward", normed, dtype)]
    return _budget(op, arguments, dtype)


def _budget(op, arguments, dtype):
    with np.errstate(all="ignore"):
        in_float32 = budget32.budget(op, arguments)
        plain = _plain(op, arguments, dtype)
        rng = np.random.default_rng(0)

        def moved(x):
            return x * (1 + HALF_ULP[dtype] * rng.choice((-1, 1), x.shape))

        wide = budget32.convert(arguments, lambda x: x.astype(np.float64))
        runs = [budget32.run(numpy_ops, op, _but_statistics(wide, moved)) for _ in range(RUNS)]
        results = []
        for i, result in enumerate(in_float32):
            if result is None or result.output in STATISTICS or result.dtype == np.float64:
                results.append(result)
                continue
            exact = result.expected
            changes = sum(budget32.distance(r[i], exact) ** 2 for r in runs)
            oracle = np.finfo(exact.dtype).eps * np.max(np.abs(exact), where=np.isfinite(exact), initial=0)
            unavoidable = np.sqrt(changes / RUNS) + HALF_ULP[dtype] * np.abs(exact) + SMALLEST[dtype] + oracle
            error = budget32.distance(plain[i].astype(exact.dtype), exact)
            worst = max(1.0, float(np.max(error / unavoidable, where=np.isfinite(plain[i]), initial=0)))
            allowed = np.where(np.isfinite(exact), K * worst * unavoidable, 0)
            allowed[~np.isfinite(plain[i]) & np.isfinite(exact)] = np.inf          # too large for the dtype
            results.append(budget32.Result(result.output, exact, allowed, STORED[dtype], worst))
        return results
