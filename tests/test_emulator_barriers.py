"""Our own kernels are clean, whatever the order of threads and of asynchronous copies; and every barrier and wait in
them is needed: the emulator leaves each out in turn, and has to find that something is wrong."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest

from minigpt import emulator
from minigpt.emulator.build import sources
from minigpt.ops import available, budget, budget16, cases, load, numpy_ops

pytestmark = pytest.mark.skipif(available()["emulated"] is not None, reason=str(available()["emulated"]))

ORDERS = {"forward, copies late": {},
          "reversed, copies early": dict(warps="reversed", blocks="reversed", copies="early"),
          "shuffled": dict(warps="shuffled", blocks="shuffled", seed=1)}
LARGEST = 12_000                           # numbers in a case: enough for several tiles of every kernel

# Barriers that could go without harm, and why. Each "file:text of the line" with a reason.
HARMLESS = {}


def rungs():
    if available()["emulated"] is not None:
        return []
    ops = load("emulated")
    named = [name for name in vars(numpy_ops)
             if name.endswith(("_forward", "_backward")) or name in ("adamw", "squared_norm")]
    return [(op, kernel) for op in named if op in ops._rungs for kernel in ops.kernels.get(op) or (None,)]


@functools.cache
def calls(op, kernel):
    """[the arguments of a call], of a dtype that the kernel takes."""
    ops = load("emulated")
    dtype = next(d for d in ("float32", "float16") if any(ops.takes(op, kernel, d, D) for D in (16, 64)))
    if dtype == "float32":
        tried = [case.arguments for case in cases.cases(op)]
    else:
        tried = [budget16.stored(case.arguments, dtype) for case in budget16.cases(op, dtype)]
    sizes = [sum(x.size for x in arguments.values() if isinstance(x, np.ndarray)) for arguments in tried]
    tried = [a for _, a in sorted(zip(sizes, tried, strict=True), key=lambda pair: -pair[0]) if _ <= LARGEST]
    return [a for a in tried if "q" not in a or ops.takes(op, kernel, dtype, a["q"].shape[-1])]


def watched(op, kernel, arguments, **options):
    with emulator.watch(**options) as report:
        budget.run(load("emulated"), op, arguments, **({"kernel": kernel} if kernel else {}))
    return report


@pytest.mark.parametrize("op, kernel", rungs())
def test_our_kernels_are_clean(op, kernel):
    for i, arguments in enumerate(calls(op, kernel)):
        order = list(ORDERS)[i % len(ORDERS)]
        report = watched(op, kernel, arguments, **ORDERS[order])
        assert not report.findings, f"{order}: {report}"


def test_the_cases_reach_every_barrier():
    reached = {site for rung in rungs() for arguments in calls(*rung) for site in watched(*rung, arguments).sites}
    reached = {(Path(site.rpartition(":")[0]).name, int(site.rpartition(":")[2])) for site in reached}
    for path in (sources() / "cuda").rglob("*.cu*"):
        if path.name == "ptx.cuh" or "hopper" in path.name:         # the definitions, and what is not emulated
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"__syncthreads\(|__syncwarp\(|cp_async_wait<", line.partition("//")[0]):
                assert (path.name, number) in reached, f"{path}:{number}: {line.strip()}"


@pytest.mark.parametrize("op, kernel", rungs())
def test_no_barrier_can_go(op, kernel):
    sites = set()
    for arguments in calls(op, kernel):
        sites |= watched(op, kernel, arguments).sites
    for site in sorted(sites):
        caught = any(watched(op, kernel, arguments, skip=site, **options).findings
                     for arguments in calls(op, kernel) for options in list(ORDERS.values())[:2])
        file, _, line = site.rpartition(":")
        text = Path(file).read_text().splitlines()[int(line) - 1].strip()
        assert caught or f"{Path(file).name}: {text}" in HARMLESS, f"{site} can be left out: {text}"
