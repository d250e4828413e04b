"""Holds what a student's function returned against NumPy, the specification, within a measured error budget.

The budget (minigpt/ops/budget.py) grows with the errors that any correct float32 program makes on these very numbers,
so nobody loses points for adding up in another order, and nobody keeps them with a formula that loses digits.
"""

import numpy as np

from ..ops import budget
from .process import Failed


def agrees(adapters, name, op=None, returned=None, /, **arguments):
    """Calls adapters.<name> with these arguments, twice, and compares what it returns with minigpt's op of that name,
    or `op`. Failed, in words that name the worst element, where they differ. `returned`: the names of the op's results
    that it returns, where these are not all."""
    outputs = returned or budget.OUTPUTS[op or name]
    copies = budget.convert(arguments, np.copy)
    results = getattr(adapters, name)(**copies)
    for key, before in arguments.items():
        if isinstance(before, np.ndarray) and before.tobytes() != copies[key].tobytes():
            raise Failed(f"{name}: changed its argument {key}, must leave it as it is")
    results = as_tuple(name, outputs, results)
    allowed = [result for result in budget.budget(op or name, arguments) if result.output in outputs]
    for output, got, wanted in zip(outputs, results, allowed, strict=True):
        same_form(name, output, got, wanted.expected.shape, wanted.dtype)
    worst = max(budget.judge(name, allowed, results), key=lambda v: np.inf if v.share != v.share else v.share)
    if not worst.ok:
        raise Failed(f"{worst} (arguments: {shapes(arguments)})")
    again = as_tuple(name, outputs, getattr(adapters, name)(**arguments))
    if any(a.tobytes() != np.asarray(b).tobytes() for a, b in zip(results, again, strict=True)):
        reordered = ", its threads in another order" * bool(getattr(adapters, "seen", None))
        raise Failed(f"{name}: returns something else when it is called again with the same arguments{reordered}")


def equals(name, got, expected, of=""):
    """Failed, in words that name the first difference, unless `got` is `expected`: numbers, texts, lists of these. What
    has one value has it whether it is a list, a tuple or an array. `of`: what it was called with, in words."""
    got, expected = plain(got), plain(expected)
    if got == expected:
        return
    said = f"returned {short(got)}, expected {short(expected)}"
    if type(got) is type(expected) and isinstance(expected, (list, str)):
        i = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b),
                 min(len(got), len(expected)))
        ends = [short(x[i]) if i < len(x) else "the end" for x in (got, expected)]
        said = f"item {i} is {ends[0]}, expected {ends[1]}\n{said}"
    raise Failed(f"{name}: {said}" + (of and f"\narguments: {of}"))


def near(name, output, got, expected, tolerance=1e-9):
    """Failed, naming the worst element, unless `got` is `expected`, an array, to within `tolerance` of its largest
    finite element. For float64, which rounds at 1e-16: what differs by more is another formula."""
    same_form(name, output, got, expected.shape, expected.dtype)
    if not expected.size:
        return
    difference = np.subtract(got, expected, where=got != expected, out=np.zeros_like(got))    # infinities may be equal
    error = np.where(np.isfinite(difference), np.abs(difference), np.inf)
    worst = np.unravel_index(error.argmax(), error.shape)
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0)
    allowed = tolerance * largest + np.finfo(np.float64).tiny
    if not error[worst] <= allowed:
        where = f"[{', '.join(map(str, worst))}]" if worst else ""
        within = f" +- {allowed:.1g}" if tolerance else ""
        raise Failed(f"{name}: {output}{where} is {got[worst]:.9g}, expected {expected[worst]:.9g}{within}")


def plain(x):
    """Arrays and tuples as lists."""
    if isinstance(x, (np.ndarray, np.generic)):
        return x.tolist()
    return [plain(y) for y in x] if isinstance(x, (list, tuple)) else x


def short(x, most=120):
    text = repr(x)
    return text if len(text) <= most else text[:most] + " ..."


def as_tuple(name, outputs, results):
    results = results if isinstance(results, (tuple, list)) else (results,)
    if len(results) != len(outputs):
        raise Failed(f"{name}: returned {len(results)} values, must return {len(outputs)}: {', '.join(outputs)}")
    return tuple(results)


def same_form(name, output, got, shape, dtype):
    if not isinstance(got, np.ndarray):
        raise Failed(f"{name}: {output} is {'None' if got is None else type(got).__name__}, must be a NumPy array")
    if got.shape != shape:
        raise Failed(f"{name}: {output} has shape {got.shape}, must have {shape}")
    if got.dtype != dtype:
        raise Failed(f"{name}: {output} is {got.dtype}, must be {dtype}, as the arguments are")


def shapes(arguments):
    return ", ".join(f"{name} {x.shape}" if isinstance(x, np.ndarray) else f"{name}={x}"
                     for name, x in arguments.items())


def writes_all(adapters, name, /, **arguments):
    """Failed unless every element of what adapters.<name> returns is a number, and not the same one everywhere."""
    results = getattr(adapters, name)(**arguments)
    for i, x in enumerate(results if isinstance(results, (tuple, list)) else (results,)):
        if not np.isfinite(x).all():
            where = ", ".join(map(str, np.argwhere(~np.isfinite(x))[0]))
            raise Failed(f"{name}: result {i} is not written everywhere, or no number: element [{where}] "
                         f"(arguments: {shapes(arguments)})")
        if x.size > 1 and np.ptp(x) == 0:
            raise Failed(f"{name}: result {i} is {x.flat[0]:.9g} everywhere, must be computed from the arguments")
