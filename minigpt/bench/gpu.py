"""minigpt bench gpu: everything that only a GPU can say, in four parts, into one JSON file.

    build      the kernels, for the GPU at hand
    mirror     the mirror's tests on it, rung by rung
    sanitize   every rung under compute-sanitizer: memcheck, racecheck and initcheck (gpu_calls.py)
    time       every rung beside torch, whose backend is named, held against the targets (gpu_time.py, gpu_rows.py)

The file is written after each rung and each row, and read again where it exists: what it holds is not done twice, so a
run that was stopped goes on where it was, and --only time,sanitize does some parts. Every rung is tried in a process of
its own, and timed in one that can be replaced: a kernel that hangs, or takes the GPU's context with it, costs itself
only. With --emulated the same parts run on the emulator at tiny sizes, its own checks in the place of
compute-sanitizer: that tries this program, and its times say nothing about any GPU.
"""

import datetime
import hashlib
import importlib.util
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from .. import nvcc
from .. import ops as backends
from . import write_json
from .gpu_rows import PEERS

REPOSITORY = Path(__file__).parents[2]
PARTS = ("build", "mirror", "sanitize", "time")
TOOLS = ("memcheck", "racecheck", "initcheck")
LIMIT = 150                                # seconds that one rung may take in one process, and one row without a word
TRIED = [("rmsnorm_forward", None), ("layernorm_forward", "naive"),        # what the emulator is asked to repeat: an op
         ("layernorm_backward", "atomics")]                                # without a ladder, a rung, a random one


def run(out, emulated, only, progress):
    """Does it all, or the parts named in `only`, writes `out` and returns the exit code: 0 if all that the file then
    holds is well. ValueError, in one line, without a GPU or nvcc, or with a file of other sources."""
    parts = only.split(",") if only else PARTS
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"bench gpu: --only names {unknown[0]!r}, there are {', '.join(PARTS)}")
    if not emulated and not nvcc.seen():
        raise ValueError("bench gpu: there is no GPU here (nvidia-smi lists none); --emulated tries it all without one")
    path, start = Path(out), time.perf_counter()
    result = resumed(path, emulated)

    def keep(what):
        write_json(path, result)
        progress(f"{time.perf_counter() - start:4.0f} s  {what}")

    name = "emulated" if emulated else "cuda"
    if "build" in parts and not emulated:
        result["build"] = build()
        keep("build")
    for part, tasks, do in (("mirror", ["test"], mirror),
                            ("sanitize", ["emulator"] if emulated else TOOLS, sanitize)):
        if part in parts:
            each_rung(name, result.setdefault(part, {}), tasks, do, keep)
    if "time" in parts:
        measure(name, result, keep)
    print(terminal(result))
    return 0 if succeeded(result) else 1


def resumed(path, emulated):
    """What the file holds, or the beginnings of a new one. ValueError if it is of other sources or another machine."""
    sources = hashlib.sha256(b"".join(file.read_bytes() for file in hashed())).hexdigest()[:16]
    fresh = {"date": datetime.date.today().isoformat(), "emulated": emulated, "sources": sources}
    if not path.exists():
        return fresh
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        same = all(result[key] == fresh[key] for key in ("emulated", "sources"))
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ValueError(f"bench gpu: {path} holds no results of these sources on this kind of machine; "
                         "--out must name another file, or one that is not there")
    return result


def hashed():
    """The files on which a result depends: the kernels, what builds and calls them, what judges and times them."""
    package = REPOSITORY / "minigpt"
    return sorted([*(REPOSITORY / "csrc" / "cuda").rglob("*.c*"), package / "nvcc.py", package / "bench" / "timing.py",
                   *(package / "bench").glob("gpu*.py"), *(package / "ops").glob("*.py"),
                   REPOSITORY / "tests" / "test_mirror.py"])


def build():
    start = time.perf_counter()
    try:
        architectures, _ = nvcc.build(*(REPOSITORY / path for path in ("csrc", "minigpt/_cuda.so", "build/cuda")))
    except nvcc.NoNvcc as reason:
        raise ValueError(f"bench gpu: {reason}") from None
    return {"architectures": architectures, "nvcc": nvcc.version(nvcc.find()), "seconds": time.perf_counter() - start}


# ---------------------------------------------------------------------------------------------------------------
# mirror and sanitize: a process for each rung, several at a time since nothing is timed


def each_rung(name, found, tasks, do, keep):
    """Calls do(name, task, op, kernel) for all that `found` does not hold as well done, and keeps the answers there."""
    if why := backends.why_not(name):
        raise ValueError(f"bench gpu: {why}")
    ops = backends.load(name)
    rungs = [(op, kernel) for op in ops._rungs for kernel in ops.kernels.get(op, [None])]
    rungs = TRIED if name == "emulated" else rungs
    with ThreadPoolExecutor(max(1, os.cpu_count() // 2)) as pool:
        jobs = {}
        for task in tasks:
            for op, kernel in rungs:
                label = " ".join(filter(None, (task, op, kernel)))
                if not found.get(label, {}).get("ok"):
                    jobs[pool.submit(do, name, task, op, kernel)] = label
        for job in as_completed(jobs):
            found[jobs[job]] = job.result()
            keep(f"{jobs[job]}: {'ok' if job.result()['ok'] else 'FAILED'}")


def _process(*command):
    """Runs a command in a process of its own -> {"ok", "seconds", "says": its last lines}."""
    start, few = time.perf_counter(), {name: "2" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT,
                              env={**os.environ, **few})
        code, says = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, says = None, f"stopped after {LIMIT} s"
    last = 2 if code == 0 else 40
    return {"ok": code == 0, "seconds": time.perf_counter() - start, "says": says.splitlines()[-last:]}


def mirror(name, _, op, kernel):
    """The tests of one rung."""
    return _process(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_mirror.py",
                    "-k", " and ".join(filter(None, (name, op, kernel))))


def sanitize(name, tool, op, kernel):
    """Some of the mirror's calls of one rung, watched by a tool of compute-sanitizer or by the emulator."""
    call = [sys.executable, "-m", "minigpt.bench.gpu_calls", name, op, kernel or ""]
    if tool == "emulator":
        return _process(*call)
    try:
        beside_nvcc = Path(nvcc.find()).resolve().parent
    except nvcc.NoNvcc:
        beside_nvcc = Path("/usr/local/cuda/bin")
    found = shutil.which("compute-sanitizer", path=f"{beside_nvcc}:{beside_nvcc.parent}/compute-sanitizer") \
        or shutil.which("compute-sanitizer")
    if not found:
        return {"ok": False, "seconds": 0, "says": ["compute-sanitizer is not installed"]}
    return _process(found, "--tool", tool, "--target-processes", "all", "--error-exitcode", "9", "--print-limit", "20",
                    *call)


# ---------------------------------------------------------------------------------------------------------------
# time: one process at a time, which is replaced if it dies or falls silent


def measure(name, result, keep):
    """Adds to result["rows"] the rows that are not there. A variant during which the process died or hung is noted in
    result["avoid"] with the reason, and the next process leaves it out."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError("bench gpu: torch is not installed, beside which kernels are timed")
    rows, avoid = result.setdefault("rows", []), result.setdefault("avoid", {})
    while True:
        doing, why, over = "the machine", None, False
        for line in _lines(name, {"done": [row["number"] for row in rows], "avoid": avoid}):
            doing, why, over = line.get("begin", doing), line.get("why", why), over or "over" in line
            if "machine" in line:
                result.setdefault("machine", line["machine"])
                if result["machine"]["gpu"] != line["machine"]["gpu"]:
                    raise ValueError(f"bench gpu: the file is of a {result['machine']['gpu']}; --out must name another")
                keep("machine")
            if "row" in line:
                rows.append(line["row"] | {"date": datetime.date.today().isoformat(),
                                           "reached": reached(line["row"], result["machine"]["copy"])})
                keep(line["row"]["work"])
        if over:
            return
        if doing == "the machine" or doing in avoid:
            raise ValueError(f"bench gpu: the process that measures fails at {doing}: {why}")
        avoid[doing] = why or "ended the process"
        keep(f"{doing}: {avoid[doing]}")


def _lines(name, options):
    """Yields what the process that measures writes, line by line; at the end why, if it failed or fell silent."""
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "minigpt.bench.gpu_time", name, json.dumps(options)]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors, text=True)
        lines = queue.Queue()

        def listen():
            for line in process.stdout:
                lines.put(json.loads(line))
            lines.put(None)

        threading.Thread(target=listen, daemon=True).start()
        try:
            while (line := lines.get(timeout=LIMIT)) is not None:
                yield line
            if process.wait(LIMIT):
                errors.seek(0)
                last = (errors.read().splitlines() or ["no word"])[-1]
                yield {"why": f"the process ended with code {process.returncode}: {last[:200]}"}
        except (queue.Empty, subprocess.TimeoutExpired):
            yield {"why": f"nothing came back for {LIMIT} s"}
        finally:
            process.kill()
            process.wait()


def reached(row, copy):
    """{rung: {"FA2": 0.8, "copy": 0.9, "TFLOP/s": 200, "error": 1.0}}: the speed of each rung as a multiple of each
    peer's and of a copy's, and its error as a multiple of the largest peer's; only what could be measured."""
    found = {}
    for rung, ours in row["ours"].items():
        of = {peer: theirs["median"] / ours["median"] for peer, theirs in row["peers"].items()}
        if "flops" in row:
            of["TFLOP/s"] = row["flops"] / ours["median"] / 1e12
        if "bytes" in row and copy:
            of["copy"] = row["bytes"] / ours["median"] / copy
        theirs = [peer["error"] for peer in row["peers"].values() if peer["error"]]
        if theirs and ours["error"] is not None:
            of["error"] = ours["error"] / max(theirs)
        found[rung] = of
    return found


# ---------------------------------------------------------------------------------------------------------------
# what came of it


def succeeded(result):
    """Whether every rung passed, ran, and ran clean; backends of torch may be missing."""
    answers = [answer["ok"] for part in ("mirror", "sanitize") for answer in result.get(part, {}).values()]
    return all(answers) and not any(rung not in PEERS for row in result.get("rows", []) for rung in row["failed"]) \
        and not result.get("avoid")


def terminal(result):
    """The result as a table."""
    lines = [f"{result.get('machine', {}).get('gpu') or 'no GPU: the times say nothing'}, {result['date']}"]
    for part in "mirror", "sanitize":
        answers = result.get(part, {})
        bad = [label for label, answer in answers.items() if not answer["ok"]]
        lines.append(f"{part}: {len(answers) - len(bad)} of {len(answers)} ok")
        lines += [f"  FAILED {label}: {(answers[label]['says'] or ['no word'])[-1]}" for label in bad]
    lines += [f"not timed: {what}: {why}" for what, why in result.get("avoid", {}).items()]
    for row in result.get("rows", []):
        lines += ["", f"{row['work']}, {row['dtype']}"]
        lines += [f"  {variant} does not run: {why}" for variant, why in row["failed"].items()]
        for rung, of in row["reached"].items():
            must = row["must"] if row["targets_of"] in (None, rung) else {}
            short = [peer for peer, least in must.items() if peer in of and of[peer] < least]
            speeds = "  ".join(f"{value:.3g} {'x ' if peer not in ('TFLOP/s', 'error') else ''}{peer}"
                               for peer, value in of.items())
            lines.append(f"  {rung:24} {1e3 * row['ours'][rung]['median']:9.3f} ms  {speeds}"
                         + (f"  below {', '.join(short)}" if short else "")
                         + ("" if row["ours"][rung]["queued"] else "  with the time that Python takes"))
    return "\n".join(lines)
