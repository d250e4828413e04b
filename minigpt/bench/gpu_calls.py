"""python -m minigpt.bench.gpu_calls cuda attention_forward tiled: runs one rung on the cases of the mirror, which are
small, in every dtype that it takes, for compute-sanitizer to watch. `emulated` instead of `cuda`: the emulator watches
by itself. The last line says what ran; the exit code is 1 if the emulator found something.

NumPy arrays are copied to the GPU and lose their strides. So where a kernel walks along strides, along heads, it is
called once more on slices of larger arrays, which lie on the GPU already."""

import sys
from contextlib import nullcontext
from itertools import product

import numpy as np

from .. import emulator
from .. import ops as backends
from ..ops import budget, budget16
from ..ops.bfloat16 import BFLOAT16
from ..ops.cases import cases
from ..ops.cuda_call import DTYPES

HEADS = {"attention_forward": ("out", ("q", None)), "attention_backward": ("grads", ("q", "k", "v")),
         "rope_forward": ("out", "x"), "rope_backward": ("grads", "dy")}       # whose shapes the results have


def call_rung(ops, op, kernel, every=1):
    """Makes the calls, or each `every`-th; returns their dtypes."""
    calls = []
    for dtype, case in product(DTYPES, cases(op)[::every]):
        D = case.arguments["q"].shape[-1] if "q" in case.arguments else 1
        if ops.takes(op, kernel, dtype, D):
            arguments = case.arguments if dtype == "float32" else budget16.stored(case.arguments, dtype)
            option = {} if kernel is None else {"kernel": kernel}
            budget.run(ops, op, arguments, **option)
            if op in HEADS:
                call_packed(ops, op, arguments, option)
            calls.append(dtype)
    return calls


def call_packed(ops, op, arguments, option):
    """Makes a call with heads, and results, that are slices of packed arrays."""
    keyword, like = HEADS[op]
    arguments = arguments | {keyword: arguments[like] if isinstance(like, str) else
                             tuple(name and arguments[name] for name in like)}
    arguments = budget.convert(arguments, lambda x: _packed(x) if x.ndim == 4 else x)
    getattr(ops, op)(**(arguments if ops.name == "emulated" else to_tensors(arguments, "cuda")), **option)


def _packed(x):
    """The same heads (B, H, T, D) as the second half of the rows of a (B, T, 2 H D) array."""
    B, H, T, D = x.shape
    half = np.zeros((B, T, 2, H, D), x.dtype)[:, :, 1].swapaxes(1, 2)
    half[...] = x
    return half


def to_tensors(arguments, device):
    """The arrays of a call as torch's tensors on `device`, with the same strides; views of one array become views of
    one tensor."""
    import torch

    wholes = {}

    def tensor(x):
        if isinstance(x, tuple):
            return tuple(map(tensor, x))
        if not isinstance(x, np.ndarray) or x.dtype.kind == "u":                 # of these torch has little
            return x
        whole = x if x.base is None else x.base
        if id(whole) not in wholes:
            numbers = whole.ravel("K").view(np.uint16) if x.dtype == BFLOAT16 else whole.ravel("K")
            wholes[id(whole)] = torch.from_numpy(numbers.copy()).to(device)
        found = wholes[id(whole)].view(torch.bfloat16) if x.dtype == BFLOAT16 else wholes[id(whole)]
        return found.as_strided(x.shape, [stride // x.itemsize for stride in x.strides],
                                (x.ctypes.data - whole.ctypes.data) // x.itemsize)

    return {name: tensor(x) for name, x in arguments.items()}


def main(name, op, kernel):
    with emulator.watch() if name == "emulated" else nullcontext() as report:
        calls = call_rung(backends.load(name), op, kernel or None)
    if report is not None and report.findings:
        print(report)
    print(f"{len(calls)} calls in {', '.join(dict.fromkeys(calls))}")
    return 1 if report is not None and report.findings else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
