"""python -m minigpt.bench.gpu_calls cuda attention_forward tiled: runs one rung on the cases of the mirror, which are
small, in every dtype that it takes, for compute-sanitizer to watch. `emulated` instead of `cuda`: the emulator watches
by itself. The last line says what ran; the exit code is 1 if the emulator found something."""

import sys
from contextlib import nullcontext
from itertools import product

from .. import emulator
from .. import ops as backends
from ..ops import budget, budget16
from ..ops.cases import cases
from ..ops.cuda_call import DTYPES


def call_rung(ops, op, kernel, every=1):
    """Makes the calls, or each `every`-th; returns their dtypes."""
    calls = []
    for dtype, case in product(DTYPES, cases(op)[::every]):
        D = case.arguments["q"].shape[-1] if "q" in case.arguments else 1
        if ops.takes(op, kernel, dtype, D):
            arguments = case.arguments if dtype == "float32" else budget16.stored(case.arguments, dtype)
            budget.run(ops, op, arguments, **({} if kernel is None else {"kernel": kernel}))
            calls.append(dtype)
    return calls


def main(name, op, kernel):
    with emulator.watch() if name == "emulated" else nullcontext() as report:
        calls = call_rung(backends.load(name), op, kernel or None)
    if report is not None and report.findings:
        print(report)
    print(f"{len(calls)} calls in {', '.join(dict.fromkeys(calls))}")
    return 1 if report is not None and report.findings else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
