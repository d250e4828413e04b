"""The process that measures the rows of gpu_rows.py: python -m minigpt.bench.gpu_time cuda '{"done": [], "avoid": {}}'.

It writes a JSON object a line: the machine; before each variant, which one begins; each row; and that it is over. The
one who started it (gpu.py) so knows where it stopped, if a kernel hangs or breaks the GPU's context. `done` are the
numbers of the rows to leave out, `avoid` the variants.
"""

import json
import math
import subprocess
import sys
import time

import numpy as np
import torch

from .. import ops as backends
from ..ops import check
from . import gpu_rows
from .timing import summary

SLEEP = 400_000                            # cycles for each call, about 0.2 ms: longer than Python takes to start one
BLOCK = 0.02                               # seconds of GPU time in a block
BLOCKS = 7                                 # of each variant; their order rotates
SLOW = 0.3                                 # a call that takes longer is timed once
COPY = 2 * 2**30                           # bytes, half read, half written, of the copy that others are held against


def main(name, options):
    on_gpu = name == "cuda"
    check.in_range = lambda *_, **__: None        # the look at token ids waits for the GPU, and is not what is timed
    found = machine(on_gpu)
    say(machine=found)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    maker = gpu_rows.Maker(backends.load(name), torch, "cuda" if on_gpu else "cpu", found["l2"])
    for number, make in enumerate(gpu_rows.rows(maker, tiny=not on_gpu)):
        if number in options["done"] or f"row {number}" in options["avoid"]:
            continue
        say(begin=f"row {number}")
        say(row={"number": number} | measure(make(), options["avoid"], on_gpu))
        del make                                                       # gigabytes
        if on_gpu:
            torch.cuda.empty_cache()
    say(over=True)


def say(**line):
    print(json.dumps(line), flush=True)


def machine(on_gpu):
    """What it runs on. On a GPU also the speed of a large copy, in bytes per second, each byte counted twice."""
    if not on_gpu:
        return {"gpu": None, "torch": torch.__version__, "l2": 4096, "copy": None}
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    driver, clock, power = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()[0].split(", ")
    x = torch.zeros(COPY // 2, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    copy = time_calls({"copy": lambda: y.copy_(x)}, on_gpu)["copy"]["median"]
    return {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count, "l2": properties.L2_cache_size,
            "driver": driver, "largest_clock": clock, "power_limit": power, "torch": torch.__version__,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "copy": COPY / copy}


def measure(row, avoid, on_gpu):
    """What is kept of a row: the work and, of each variant, the summary of its times and its error. `failed` has those
    that do not run, with the reason: a backend of torch that is not for this machine, say."""
    calls, errors, failed, exact = {}, {}, {}, row.oracle()
    for variant, prepare in (row.ours | row.peers).items():
        label = f"{row.op}, {row.dtype}, {variant}"
        if label in avoid:
            failed[variant] = avoid[label]
            continue
        say(begin=label)
        try:
            call = prepare()
            errors[variant] = _error(row.sample(call()), exact)        # the first call is on the oracle's arrays
            calls[variant] = call
        except Exception as error:                                     # whatever it is, the others are to be timed
            failed[variant] = " ".join(str(error).split())[:200] or type(error).__name__
            if on_gpu:
                _stop_if_broken(failed[variant])
    times = time_calls(calls, on_gpu)
    found = {"work": row.work, "op": row.op, "dtype": row.dtype, **row.amount, "must": row.must, "aim": row.aim,
             "targets_of": row.targets_of, "failed": failed}
    for side, names in ("ours", row.ours), ("peers", row.peers):
        found[side] = {variant: {**times[variant], "error": errors[variant]} for variant in names if variant in calls}
    return found


def _stop_if_broken(why):
    """After an illegal access nothing runs in this process any more."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        say(why=why)
        sys.exit(3)


def _error(got, exact):
    """The largest difference from the oracle, as a part of the largest number there; None if that is no number."""
    worst = max(float(np.abs(gpu_rows.as_float64(x) - y).max()) for x, y in zip(got, exact, strict=True))
    return worst / max(float(np.abs(x).max()) for x in exact) if math.isfinite(worst) else None


def time_calls(calls, on_gpu):
    """Times functions that start kernels on torch's current stream, interleaved: {name: function} -> {name: summary}.
    Not on a GPU, they do their work themselves, as they do on the emulator.

    A block is so many calls between two events. Before it the GPU is kept busy for a while, so that the calls are all
    in its queue when the first begins, and the time it takes Python to start them is not measured. Where they were not,
    the block is timed again after a longer while; if they never were, the summary says "queued": false.
    """
    counts, seconds, queued = {}, {name: [] for name in calls}, dict.fromkeys(calls, True)
    for name, call in calls.items():
        call()
        took, _ = _block(call, 1, on_gpu)
        seconds[name] = [took] if took > SLOW else []
        counts[name] = 0 if took > SLOW else min(50, max(1, round(BLOCK / took)))
    for i in range(BLOCKS):
        names = list(calls)
        for name in names[i % len(names):] + names[:i % len(names)]:
            if counts[name]:
                took, in_time = _block(calls[name], counts[name], on_gpu)
                seconds[name].append(took)
                queued[name] &= in_time
    return {name: summary(measured, len(measured)) | {"queued": queued[name]} for name, measured in seconds.items()}


def _block(call, count, on_gpu):
    """-> the seconds of a call, and whether all of them were in the queue before the first began."""
    if not on_gpu:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start, True
    for cycles in (SLEEP * count, 4 * SLEEP * count, 16 * SLEEP * count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(cycles)
        begin.record()
        for _ in range(count):
            call()
        in_time = not begin.query()        # the GPU has not come to the first call
        end.record()
        end.synchronize()
        if in_time:
            break
    return begin.elapsed_time(end) / 1e3 / count, in_time


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
