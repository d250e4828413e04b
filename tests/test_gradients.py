"""The gradients of the specification, numpy_ops.py, against finite differences in float64."""

import inspect

import numpy as np
import pytest
from test_mirror import OPS

from minigpt.ops import budget, numpy_ops
from minigpt.ops import cases as all_cases


@pytest.mark.parametrize("backward, kernel", [(op, kernel) for op in OPS if op.endswith("_backward")
                                              for kernel in numpy_ops.kernels.get(op, (None,))])
def test_gradients_are_derivatives(backward, kernel):
    """The loss is a weighted sum of the results, so their gradients are the weights. Every element of every argument is
    moved both ways by a millionth of its array's spread; the derivative is then good to about 1e-7 of the largest."""
    forward = backward.replace("backward", "forward")
    tried = 0
    for case in all_cases.cases(forward):
        arguments = budget.convert(case.arguments, lambda x: x.astype(np.float64))
        floats = {name: x for name, x in arguments.items() if isinstance(x, np.ndarray) and x.dtype.kind == "f"}
        if max(x.size for x in floats.values()) > 700 or "a row of -inf" in case.name:      # that has no derivative
            continue
        tried += 1
        rng = np.random.default_rng(4)
        results = dict(zip(budget.OUTPUTS[forward], budget.run(numpy_ops, forward, arguments), strict=True))
        known = {**arguments, **results, "dloss": 0.37}
        weights = {}
        for name in inspect.signature(getattr(numpy_ops, backward)).parameters:
            if name[0] == "d" and name[1:] in results:
                size = np.abs(results[name[1:]]).max() or 1        # no result drowns the others in the loss
                weights[name[1:]] = known[name] = rng.normal(0.5, 1, results[name[1:]].shape) / size
        if "cross_entropy" in forward:
            weights["losses"] = np.full(results["losses"].shape, 0.37)

        def loss(arguments, weights=weights, forward=forward):
            moved = dict(zip(budget.OUTPUTS[forward], budget.run(numpy_ops, forward, arguments), strict=True))
            return sum((w * moved[name]).sum() for name, w in weights.items())

        wanted = {name: known[name] for name in inspect.signature(getattr(numpy_ops, backward)).parameters
                  if name in known}
        gradients = budget.run(numpy_ops, backward, wanted, **({} if kernel is None else {"kernel": kernel}))
        for name, gradient in zip(budget.OUTPUTS[backward], gradients, strict=True):
            argument = name[1:]
            if gradient is None or argument not in floats:
                continue
            x = floats[argument]
            finite = np.isfinite(x)
            h = 1e-6 * (x[finite].std() or 1.0)
            numeric = np.zeros(x.shape)
            for i in np.argwhere(finite):
                there, back = x.copy(), x.copy()
                there[tuple(i)] += h
                back[tuple(i)] -= h
                with np.errstate(all="ignore"):
                    numeric[tuple(i)] = (loss(dict(arguments, **{argument: there}))
                                         - loss(dict(arguments, **{argument: back}))) / (2 * h)
            error, largest = np.abs(numeric - gradient).max(), np.abs(gradient).max()
            assert error <= 1e-6 * max(largest, 1e-3), f"{case}: {name} differs by {error:.2g} of {largest:.2g}"
    assert tried >= 2
