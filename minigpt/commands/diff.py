"""minigpt diff: does one backend compute what another does, and if not, which operation is the first that does not?

A small GPT of GPT-2's shape and one of Llama's go forward and back once. Every operation is run on both backends with
the same arguments, and each result is held against the oracle within the error budget (see ops/budget.py), so that an
error shows where it is made and not in everything after it. The model itself goes on with what backend a computed.
"""

import inspect
import math

import numpy as np

from .. import ops as backends
from ..config import ModelConfig
from ..model import GPT
from ..ops import budget, numpy_ops

SIZE = dict(vocab_size=67, block_size=24, n_layer=1, n_head=4, n_embd=40)
LLAMA = dict(norm="rmsnorm", position="rope", activation="swiglu", bias=False, tied=False, n_kv_head=2, n_inner=107)
SHAPES = {"GPT-2's shape": ModelConfig(**SIZE), "Llama's shape": ModelConfig(**SIZE, **LLAMA)}
B, T = 2, 19


def add_arguments(parser):
    parser.add_argument("--a", default="numpy", choices=backends.BACKENDS, help="the backend that the model runs on")
    parser.add_argument("--b", default="cpp", choices=backends.BACKENDS, help="the backend that is compared with it")


def run(args):
    a, b = backends.load(args.a), backends.load(args.b)
    first_over = None
    for name, config in SHAPES.items():
        print(f"\n{name}: the worst result of each operation, as a share of its error budget\n")
        print(f"  {'call':>4}  {'operation':28} {'weights':14} {args.a + ':':>17} {args.b + ':':>17}")
        for number, (op, weights, *verdicts) in enumerate(compare(config, a, b), start=1):
            worst = [max(of_one, key=_badness) for of_one in verdicts]
            shares = " ".join(f"{verdict.output:>9} {verdict.share:7.1%}" for verdict in worst)
            over = [pair for pair in zip((args.a, args.b), worst, strict=True) if not pair[1].ok]
            print(f"  {number:4}  {op:28} {weights:14} {shares}{'  <- over' if over else ''}")
            if over and first_over is None:
                backend, verdict = over[0]
                first_over = f"{name}, call {number}, on {backend}: {verdict}"
    print(f"\nThe budget is {budget.K} times NumPy's own error or more: numpy uses at most {1 / budget.K:.1%}.")
    if first_over:
        print(f"\nThe first operation over its budget: {first_over}")
        return 1
    print(f"\n{args.a} and {args.b} agree: every operation is within its error budget.")
    return 0


def _badness(verdict):
    return verdict.share if verdict.share == verdict.share else math.inf


def compare(config, a, b):
    """Runs a model forward and back -> [(operation, weights, verdicts on a, verdicts on b)], in the order of the
    calls. `weights` is the name of the part of the model whose parameters the call was given, or ""."""
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape, np.float32) * np.float32(0.3) + np.float32("norm" in name)
              for name, shape in config.parameter_shapes().items()}
    tokens, targets = rng.integers(0, config.vocab_size, (2, B, T))
    targets[0, 3] = -100
    both = _Both(a, b, params)
    model = GPT(config, both, params=params)
    model.forward(tokens, targets)
    model.backward()
    return both.calls


class _Both:
    """Stands in for a backend's module: every operation runs on both, and returns what `a` computed."""

    def __init__(self, a, b, params):
        self.name, self._a, self._b, self._params = a.name, a, b, params
        self.calls = []

    def __getattr__(self, op):
        if op not in budget.OUTPUTS:
            return getattr(self._a, op)
        signature = inspect.signature(getattr(numpy_ops, op))

        def call(*args, **options):
            bound = signature.bind(*args, **options).arguments
            keywords = [k for k, p in signature.parameters.items() if p.kind == p.KEYWORD_ONLY]
            given = {k: bound.pop(k) for k in keywords if k in bound}
            key = "out" if "out" in given else "grads"  # what the results are to be written into
            allowed = budget.budget(op, bound)
            verdicts = []
            for backend in (self._a, self._b):
                buffers = {key: _blank(given[key])} if key in given else {}
                results = budget.run(backend, op, bound, **buffers)
                if isinstance(given.get(key), tuple):  # what the model has no use for (a missing bias) is not judged
                    results = [None if x is None else r for r, x in zip(results, given[key], strict=True)]
                    allowed = [None if x is None else r for r, x in zip(allowed, given[key], strict=True)]
                verdicts.append(budget.judge(op, allowed, results))
            self.calls.append((op, self._weights(bound), *verdicts))
            return getattr(self._a, op)(*args, **options)

        return call

    def _weights(self, arguments):
        for name, param in self._params.items():
            if any(x is param for x in arguments.values()):
                return name.removesuffix(".weight").removesuffix(".bias")
        return ""


def _blank(buffers):
    """Arrays of the same shapes, full of NaN."""
    if isinstance(buffers, tuple):
        return tuple(None if x is None else _blank(x) for x in buffers)
    return np.full(buffers.shape, np.nan, buffers.dtype)
