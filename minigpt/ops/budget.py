"""Error budgets: how far an implementation of an op may be from the exact result.

Two correct float32 programs differ, by how much depends on the op, its size and the numbers; so the tolerance is not
picked by hand but measured, on the very arguments of the call, from two things:
- `unavoidable`, per element: what rounding the inputs and the output alone does to it. The oracle (NumPy in the next
  wider type) runs a few more times on inputs moved by half an ulp at random; the root mean square of the changes, plus
  half an ulp of the result. It is large where terms cancel, whoever computes, and exactly 0 where a result is exact.
- `plain`, per row (the last axis): the largest error that the plain NumPy version makes in the type under test. It
  grows with the length of the sums, and knows where the formula itself loses digits.
- `typical`, one number: the median, over rows, of plain / unavoidable, so that a row in which NumPy was lucky is no
  trap.
An element may be wrong by K * (plain + (1 + typical) * unavoidable). Rows, because their scales may differ by orders of
magnitude, and one large row would hide wrong small ones. With K = 8 most correct kernels use a tenth of the budget, the
worst, which add up hundreds of products in one float, three quarters; of the planted bugs (tests/planted_bugs.py) the
subtlest overrun it threefold, most a millionfold.

NumPy's own accuracy is held in tests/test_mirror.py: `typical` must stay small.

NaN and infinity must be where they are in the oracle; a comparison that yields NaN is a failure.

Kernels that keep numbers in 16 bits have a budget of their own: see budget16.py.
"""

from dataclasses import dataclass

import numpy as np

from . import numpy_ops
from .bfloat16 import BFLOAT16, is_float, to_float32

K = 8
RUNS = 4
WIDER = {np.dtype(np.float32): np.float64, np.dtype(np.float64): np.longdouble}

# The results of each op by name, in the order of numpy_ops.py.
OUTPUTS = {
    "embedding_forward": ("x",),
    "embedding_backward": ("dwte", "dwpe"),
    "layernorm_forward": ("y", "mean", "rstd"),
    "layernorm_backward": ("dx", "dweight", "dbias"),
    "rmsnorm_forward": ("y", "rstd"),
    "rmsnorm_backward": ("dx", "dweight"),
    "residual_layernorm_forward": ("h", "y", "mean", "rstd"),
    "residual_layernorm_backward": ("dx", "dweight", "dbias"),
    "linear_forward": ("y",),
    "linear_backward": ("dx", "dweight", "dbias"),
    "linear_gelu_forward": ("y", "pre"),
    "gelu_forward": ("y",),
    "gelu_backward": ("dx",),
    "swiglu_forward": ("y",),
    "swiglu_backward": ("dgate", "dup"),
    "rope_forward": ("y",),
    "rope_backward": ("dx",),
    "attention_forward": ("out", "lse"),
    "attention_backward": ("dq", "dk", "dv"),
    "cross_entropy_forward": ("losses", "lse"),
    "cross_entropy_backward": ("dlogits",),
    "adamw": ("param", "m", "v"),
    "squared_norm": ("norm",),
    "moe_router_forward": ("gates", "experts"),
    "moe_router_backward": ("dlogits",),
    "router_losses_forward": ("balance", "z"),
    "router_losses_backward": ("dlogits",),
    "moe_dispatch_forward": ("rows", "place", "offsets"),
    "moe_dispatch_backward": ("dx",),
    "grouped_linear_forward": ("y",),
    "grouped_linear_backward": ("dx", "dweight"),
    "moe_combine_forward": ("y",),
    "moe_combine_backward": ("drows", "dgates"),
}
IN_PLACE = ("adamw",)                     # ops whose results are the arguments of those names


def convert(arguments, change):
    """The arguments of a call with `change` applied to every float array, those inside tuples too."""
    def one(x):
        if isinstance(x, tuple):
            return tuple(one(y) for y in x)
        return change(x) if isinstance(x, np.ndarray) and is_float(x.dtype) else x
    return {name: one(x) for name, x in arguments.items()}


def run(ops, op, arguments, **options):
    """Calls ops.<op> on copies of the arrays; the results always as a tuple, in the order of OUTPUTS[op]."""
    arguments = convert(arguments, np.copy)
    results = getattr(ops, op)(**arguments, **options)
    if op in IN_PLACE:
        return tuple(arguments[name] for name in OUTPUTS[op])
    return results if isinstance(results, tuple) else (results,)


def distance(a, b):
    """|a - b|, which is 0 between equal infinities and between NaNs, and not finite where only one is."""
    with np.errstate(invalid="ignore"):
        return np.where((a == b) | ((a != a) & (b != b)), 0, np.abs(a - b))


@dataclass
class Result:
    """What is expected of one output of one call, and how far each element may be from it. `typical` is how many
    times the unavoidable error plain NumPy makes."""
    output: str
    expected: np.ndarray
    allowed: np.ndarray
    dtype: np.dtype
    typical: float


@dataclass
class Verdict:
    """The worst element of one output. `share` is its part of the error budget: over 1, or NaN, is a failure."""
    op: str
    output: str
    share: float
    index: tuple
    expected: float
    got: float
    allowed: float

    @property
    def ok(self):
        return self.share <= 1

    def __str__(self):
        used = "" if self.share != self.share else f": {100 * self.share:.3g} % of the error budget"         # NaN: none
        return (f"{self.op}: {self.output}{list(self.index)} is {self.got:.9g}, expected {self.expected:.9g} "
                f"+- {self.allowed:.2g}{used}")


def budget(op, arguments):
    """Runs the oracle: a list with one Result per output (None where the op returns None). `arguments` by name, as the
    op takes them, in the dtype under test."""
    with np.errstate(all="ignore"):
        plain = [None if x is None else np.asarray(x) for x in run(numpy_ops, op, arguments)]
        dtype = plain[0].dtype            # float64 for squared_norm, whose result is more precise than its argument
        wider, half_ulp = WIDER[dtype], np.finfo(dtype).eps / 2
        rng = np.random.default_rng(0)

        def oracle(change):
            results = run(numpy_ops, op, convert(arguments, lambda x: change(x.astype(wider))))
            return [None if x is None else np.asarray(x) for x in results]

        def moved(x):
            return x * (1 + half_ulp * rng.choice((-1, 1), x.shape))

        exact = oracle(lambda x: x)
        runs = [oracle(moved) for _ in range(RUNS)]
        results = []
        for i, (name, expected) in enumerate(zip(OUTPUTS[op], exact, strict=True)):
            if expected is None:
                results.append(None)
                continue
            changes = sum(distance(r[i], expected) ** 2 for r in runs)
            unavoidable = np.sqrt(changes / RUNS) + half_ulp * np.abs(expected)
            if not expected.ndim:         # one sum over everything has no other rows to tell what is typical of it
                terms = max(x.size for x in arguments.values() if isinstance(x, np.ndarray))
                unavoidable = unavoidable * np.sqrt(terms)
            error = distance(plain[i].astype(wider), expected)
            plain_error, row_unavoidable = (x.max(axis=-1, keepdims=True) if x.ndim else x
                                            for x in (error, unavoidable))
            ratios = (plain_error / row_unavoidable)[row_unavoidable > 0]
            typical = float(np.median(ratios)) if ratios.size else 0.0
            smallest = np.finfo(dtype).tiny / np.finfo(dtype).eps   # numbers so small may be flushed to zero
            allowed = K * (plain_error + (1 + typical) * unavoidable) + smallest
            allowed = np.where(np.isfinite(expected), allowed, 0)
            results.append(Result(name, expected, allowed, plain[i].dtype, typical))
        return results


def judge(op, results, got):
    """Holds what an implementation returned (a tuple, in the order of OUTPUTS[op]) against `results`, which came from
    budget(): a list with one Verdict per output. ValueError if a result has the wrong shape or dtype."""
    verdicts = []
    for result, x in zip(results, got, strict=True):
        if result is None:
            if x is not None:
                raise ValueError(f"{op}: returned {x!r} where numpy_ops returns None")
            continue
        x = np.asarray(x)
        if x.shape != result.expected.shape or x.dtype != result.dtype:
            raise ValueError(f"{op}: {result.output} is {x.dtype} {x.shape}, must be {result.dtype} "
                             f"{result.expected.shape}")
        x = to_float32(x) if x.dtype == BFLOAT16 else x
        error = distance(x.astype(result.expected.dtype), result.expected)
        with np.errstate(all="ignore"):
            share = np.where(error == 0, 0, error / result.allowed)
        index = np.unravel_index(np.argmax(np.where(np.isnan(share), np.inf, share)), share.shape)
        verdicts.append(Verdict(op, result.output, float(share[index]), tuple(int(i) for i in index),
                                float(result.expected[index]), float(x[index]), float(result.allowed[index])))
    return verdicts
