"""python -m minigpt.bench.gpu_calls cuda 4: runs every rung of every op in csrc/cuda on each fourth case of the mirror,
in every dtype that it takes, for compute-sanitizer to watch. `emulated` instead of `cuda`: the emulator watches by
itself. The last line says what ran; the exit code is 1 if the emulator found something."""

import sys
from contextlib import nullcontext
from itertools import product

from .. import emulator
from .. import ops as backends
from ..ops import budget, budget16
from ..ops.cases import cases
from ..ops.cuda_call import DTYPES


def call_all(ops, every):
    """Makes the calls; returns [(op, rung, dtype)] of all that were made."""
    calls = []
    for op, ladder in ops._rungs.items():
        some = cases(op)[::every]
        for name in ops.kernels.get(op, (None,)):
            for dtype, case in product(DTYPES, some):
                D = case.arguments["q"].shape[-1] if "q" in case.arguments else 1
                if any(rung.takes(dtype, D) for rung in ladder if name in (None, rung.name)):
                    arguments = case.arguments if dtype == "float32" else budget16.stored(case.arguments, dtype)
                    budget.run(ops, op, arguments, **({} if name is None else {"kernel": name}))
                    calls.append((op, name, dtype))
    return calls


def main(name, every):
    with emulator.watch() if name == "emulated" else nullcontext() as report:
        calls = call_all(backends.load(name), every)
    if report is not None and report.findings:
        print(report)
    print(f"{len(calls)} calls of {len(set(calls))} kernels")
    return 1 if report is not None and report.findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
