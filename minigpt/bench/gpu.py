"""minigpt bench gpu: everything that only a GPU can say, in one go of about eight minutes, into one JSON file.

1. builds the kernels for the GPU at hand
2. runs the mirror's tests on it
3. runs every rung under compute-sanitizer: memcheck, racecheck and initcheck (gpu_calls.py)
4. times every rung beside torch, whose backend is named, and holds the results against the targets (gpu_rows.py)

The file is written after each step, so that what was measured is kept if a later one fails. With --emulated the same
steps run on the emulator at tiny sizes, its own checks in the place of compute-sanitizer: that tries this program, and
its times say nothing about any GPU.
"""

import datetime
import importlib.util
import math
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .. import nvcc
from .. import ops as backends
from . import gpu_rows, write_json
from .timing import summary

REPOSITORY = Path(__file__).parents[2]
BLOCK = 0.02                               # seconds of GPU time in a block
BLOCKS = 7                                 # of each variant; their order rotates
SLOW = 0.3                                 # a call that takes longer is timed once
LIMIT = 240                                # seconds for a step in a process of its own
COPY = 2 * 2**30                           # bytes, half read, half written, of the copy that others are held against


def run(out, emulated, progress):
    """Does it all, writes `out` and returns the exit code. ValueError, in one line, without a GPU, nvcc or torch."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError("bench gpu: needs torch, which is not installed")
    if not emulated and not nvcc.seen():
        raise ValueError("bench gpu: there is no GPU here (nvidia-smi lists none); --emulated tries it all without one")
    if not emulated and not _torch().cuda.is_available():
        raise ValueError(f"bench gpu: this torch ({_torch().__version__}) was built without CUDA")
    name, start = "emulated" if emulated else "cuda", time.perf_counter()
    result = {"date": datetime.date.today().isoformat(), "emulated": emulated}

    def keep(step, value):
        result[step] = value
        write_json(Path(out), result)
        progress(f"{time.perf_counter() - start:4.0f} s  {step}" + (f": {value[-1]['work']}" if step == "rows" else ""))

    if not emulated:
        keep("build", build())
    keep("machine", machine(emulated))
    with ThreadPoolExecutor() as pool:     # all at once: nothing is timed yet
        tests = pool.submit(mirror, name)
        tools = {tool: pool.submit(sanitize, name, tool)
                 for tool in (["emulator"] if emulated else ["memcheck", "racecheck", "initcheck"])}
        keep("mirror", tests.result())
        keep("sanitizers", {tool: found.result() for tool, found in tools.items()})
    rows = []
    for row in measure(name, result["machine"]):
        rows.append(row)
        keep("rows", rows)
    print(terminal(result))
    steps = [result["mirror"], *result["sanitizers"].values()]
    failed = [rung for row in rows for rung in row["failed"] if rung not in gpu_rows.PEERS]
    return 0 if all(step["ok"] for step in steps) and not failed else 1


def _torch():
    """Imported when it is needed: it takes seconds."""
    import torch

    return torch


# ---------------------------------------------------------------------------------------------------------------
# the steps before anything is timed


def build():
    start = time.perf_counter()
    try:
        architectures, _ = nvcc.build(*(REPOSITORY / path for path in ("csrc", "minigpt/_cuda.so", "build/cuda")))
    except nvcc.NoNvcc as reason:
        raise ValueError(f"bench gpu: {reason}") from None
    return {"architectures": architectures, "nvcc": nvcc.version(nvcc.find()), "seconds": time.perf_counter() - start}


def machine(emulated):
    """What it ran on. On a GPU also the speed of a large copy, in bytes per second, each byte counted twice."""
    torch = _torch()
    if emulated:
        return {"gpu": None, "torch": torch.__version__, "l2": 4096, "copy": None}
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    driver, clock, power = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()[0].split(", ")
    x = torch.zeros(COPY // 2, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    copy = time_calls({"copy": lambda: y.copy_(x)}, torch)["copy"]["median"]
    return {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count, "l2": properties.L2_cache_size,
            "driver": driver, "largest_clock": clock, "power_limit": power, "torch": torch.__version__,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "copy": COPY / copy}


def _process(*command):
    """Runs a step in a process of its own -> {"ok", "seconds", "says": its last lines}."""
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT)
        code, says = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, says = None, f"stopped after {LIMIT} s"
    return {"ok": code == 0, "seconds": time.perf_counter() - start, "says": says.splitlines()[-40 if code else -3:]}


def mirror(name):
    """The tests of the backend; on the emulator, which make test covers, only a few."""
    which = "emulated and rmsnorm_forward" if name == "emulated" else name
    return _process(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_mirror.py", "-k", which)


def sanitize(name, tool):
    calls = [sys.executable, "-m", "minigpt.bench.gpu_calls", name, "20" if tool == "emulator" else "4"]
    if tool == "emulator":
        return _process(*calls)
    beside_nvcc = Path(nvcc.find()).parent
    found = shutil.which("compute-sanitizer", path=f"{beside_nvcc}:{beside_nvcc.parent}/compute-sanitizer") \
        or shutil.which("compute-sanitizer")
    if not found:
        return {"ok": False, "seconds": 0, "says": ["compute-sanitizer is not installed"]}
    return _process(found, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *calls)


# ---------------------------------------------------------------------------------------------------------------
# timing


def time_calls(calls, torch=None):
    """Times functions that start kernels on torch's current stream, interleaved: {name: function} -> {name: summary}.
    Without torch the functions are taken to do their work themselves, as they do on the emulator.

    A block is so many calls between two events. Before it the GPU is kept busy for a while, so that the calls are all
    in its queue when the first begins, and the time it takes Python to start them is not measured.
    """
    counts, seconds = {}, {name: [] for name in calls}
    for name, call in calls.items():
        call()
        took = _block(call, 1, torch)
        seconds[name] = [took] if took > SLOW else []
        counts[name] = 0 if took > SLOW else min(50, max(1, round(BLOCK / took)))
    for i in range(BLOCKS):
        names = list(calls)
        for name in names[i % len(names):] + names[:i % len(names)]:
            if counts[name]:
                seconds[name].append(_block(calls[name], counts[name], torch))
    return {name: summary(measured, len(measured)) for name, measured in seconds.items()}


def _block(call, count, torch):
    if torch is None:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(400_000 * count)     # cycles: about 0.2 ms for each call
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / count


def measure(name, found):
    """Yields a dict for each row of gpu_rows: the work and, of each variant, the summary of its times and its error.
    `failed` has those that do not run, with the reason: a backend of torch that is not for this machine, say."""
    torch, emulated = _torch(), name == "emulated"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    maker = gpu_rows.Maker(backends.load(name), torch, "cpu" if emulated else "cuda", found["l2"])
    for make in gpu_rows.rows(maker, tiny=emulated):
        row, calls, errors, failed = make(), {}, {}, {}
        exact = row.oracle()
        for variant, prepare in (row.ours | row.peers).items():
            try:
                call = prepare()
                errors[variant] = _error(row.sample(call()), exact)    # the first call is on the oracle's arrays
                calls[variant] = call
            except RuntimeError as error:
                failed[variant] = " ".join(str(error).split())[:200]
        times = time_calls(calls, None if emulated else torch)
        entry = {"work": row.work, "op": row.op, "dtype": row.dtype, **row.amount, "must": row.must, "aim": row.aim,
                 "failed": failed}
        for side, names in ("ours", row.ours), ("peers", row.peers):
            entry[side] = {variant: {**times[variant], "error": errors[variant]} for variant in names
                           if variant in calls}
        yield entry | {"reached": reached(entry, found["copy"])}
        del row, make, calls, call                                     # gigabytes
        if not emulated:
            torch.cuda.empty_cache()


def _error(got, exact):
    """The largest difference from the oracle, as a part of the largest number there; None if that is no number."""
    worst = max(float(np.abs(gpu_rows.as_float64(x) - y).max()) for x, y in zip(got, exact, strict=True))
    return worst / max(float(np.abs(x).max()) for x in exact) if math.isfinite(worst) else None


def reached(entry, copy):
    """{rung: {"FA2": 0.8, "copy": 0.9, "TFLOP/s": 200, "error": 1.0}}: the speed of each rung as a multiple of each
    peer's and of a copy's, and its error as a multiple of the largest peer's; only what could be measured."""
    found = {}
    for rung, ours in entry["ours"].items():
        of = {peer: theirs["median"] / ours["median"] for peer, theirs in entry["peers"].items()}
        if "flops" in entry:
            of["TFLOP/s"] = entry["flops"] / ours["median"] / 1e12
        if "bytes" in entry and copy:
            of["copy"] = entry["bytes"] / ours["median"] / copy
        theirs = [peer["error"] for peer in entry["peers"].values() if peer["error"]]
        if theirs and ours["error"] is not None:
            of["error"] = ours["error"] / max(theirs)
        found[rung] = of
    return found


def terminal(result):
    """The result as a table."""
    lines = [f"{result['machine']['gpu'] or 'emulated: the times say nothing'}, {result['date']}"]
    for step, value in ("mirror", result["mirror"]), *result["sanitizers"].items():
        lines.append(f"{step}: {'ok' if value['ok'] else 'FAILED'}  {value['says'][-1] if value['says'] else ''}")
    for row in result["rows"]:
        lines += ["", f"{row['work']}, {row['dtype']}"]
        lines += [f"  {variant} does not run: {why}" for variant, why in row["failed"].items()]
        for rung, of in row["reached"].items():
            short = [peer for peer, least in row["must"].items() if peer in of and of[peer] < least]
            speeds = "  ".join(f"{value:.3g} {'x ' if peer not in ('TFLOP/s', 'error') else ''}{peer}"
                               for peer, value in of.items())
            lines.append(f"  {rung:24} {1e3 * row['ours'][rung]['median']:9.3f} ms  {speeds}"
                         + (f"  below {', '.join(short)}" if short else ""))
    return "\n".join(lines)
