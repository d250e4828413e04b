"""minigpt bench: how fast, side by side with torch, and how far from what the machine allows.

    minigpt bench ops            every operation, and every rung of the ladders
    minigpt bench train          a training step of three models, beside the same model in torch
    minigpt bench decode         tokens per second of GPT-2, beside transformers and llama.cpp
    minigpt bench shakespeare --data FILE   a whole training run on a text, beside the same in torch
    minigpt bench all --keep     all of it, some eight minutes (with --data, sixteen); kept in minigpt/bench/results,
                                 README and headers redone
    minigpt bench knowledge      what a masked model learns where whole names are hidden, against a control
    minigpt bench twin           a training step of the torch twin, these kernels against torch's own, 32 and 16 bits
    minigpt bench parallel --data FILE   the same training by one process and by two ranks in every layout
    minigpt bench curves         fifty steps of training on every backend: one loss curve on top of the other
    minigpt bench gpu --out FILE   builds, tests, sanitizes and measures the CUDA kernels where there is a GPU: gpu.py
    minigpt bench tables         the README's table and the kernels' headers again, from the newest result kept

The peer is measured as people run it ("default") and at its best settings ("best"): torch with
set_float32_matmul_precision("medium"), and glibc told not to give memory back, which spares it a page fault for every
4 KiB of a large output. Each setting has a process of its own, in which ours runs interleaved with the peer, so each
ratio is taken side by side. How a figure is taken: timing.py. What is timed: ops.py, train.py, decode.py.
"""

import datetime
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from .. import ops as backends

SECTIONS = ("ops", "train", "decode", "shakespeare")
MALLOC_KEEPS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "30000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}
SECONDS = {"ops": 1.0, "train": 6, "decode": 6, "shakespeare": 0}  # meant for one comparison


def add_arguments(parser):
    parser.add_argument("what", choices=(*SECTIONS, "all", "knowledge", "twin", "curves", "parallel", "gpu", "tables"),
                        help="what to measure; tables: only rewrite them")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--json", metavar="F", help="write every figure to F, and a picture of the ladders beside it")
    parser.add_argument("--data", metavar="FILE", help="the text for parallel and shakespeare (which all leaves out "
                        "without it)")
    parser.add_argument("--only", metavar="WORDS", help="only the training settings whose name holds WORDS; gpu: only "
                        "these of its parts: build,mirror,sanitize,time")
    parser.add_argument("--keep", action="store_true", help="keep the result in minigpt/bench/results, redo the tables")
    parser.add_argument("--out", metavar="FILE", help="gpu: the JSON file to write")
    parser.add_argument("--emulated", action="store_true", help="gpu: tries the program on the emulator")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: tries everything, measures nothing")


def run(args):
    from ..commands.train import text_file
    from . import curves, picture, tables

    if args.what == "tables":
        for path in tables.write():
            print(f"rewrote {path}")
        return 0
    if args.what == "gpu":
        if not args.out:
            raise ValueError("bench gpu: needs a file for what it measures, --out FILE")
        from . import gpu
        return gpu.run(args.out, args.emulated, args.only, _progress)
    if args.only and args.what not in ("train", "all"):
        raise ValueError(f"bench: --only picks training settings, it means nothing for {args.what}")
    if args.what == "curves":
        return curves.run(_progress)
    if args.keep and (args.tiny or args.only):
        raise ValueError("bench: --keep is for whole results, it cannot stand beside --tiny or --only")
    if args.threads < 1:
        raise ValueError(f"bench: --threads is {args.threads}, must be 1 or more")
    if args.what == "twin":
        from . import twin
        return twin.run(args.threads, args.keep, args.tiny, args.json, _progress)
    if args.what == "shakespeare" and not args.data:
        raise ValueError("bench shakespeare: needs a text, --data FILE")
    if args.data:
        with text_file(args.data):
            pass  # raises before anything is measured
    if args.json and (Path(args.json).is_dir() or not os.access(Path(args.json).parent, os.W_OK)):
        raise ValueError(f"bench: --json is {args.json}, which cannot be written, must be a file in a folder of yours")
    if args.what == "knowledge":
        from . import knowledge
        return knowledge.run(args.keep, args.tiny, args.json, _progress)
    if args.what == "parallel":
        if not args.data:
            raise ValueError("bench parallel: needs a text, --data FILE")
        if args.json:
            raise ValueError(f"bench parallel: --json is {args.json}, must be left out: what it finds is a picture")
        from . import parallel
        return parallel.run(args.data, args.keep, args.tiny, _progress)
    sections = [name for name in SECTIONS if args.what in ("all", name) and (name != "shakespeare" or args.data)]
    result = measure(sections, args.threads, data=args.data, only=args.only, tiny=args.tiny, progress=_progress)
    print(tables.terminal(result))
    if args.json:
        write_json(Path(args.json), result)
        picture.ladders(result, Path(args.json).with_suffix(".png"))
    if args.keep:
        path = tables.keep(result)
        picture.ladders(tables.newest(), path.with_suffix(".png"))
        for written in [path, *tables.write()]:
            print(f"wrote {written}")
    return 0


def measure(sections, threads, data=None, only=None, tiny=False, settings=("default", "best"),
            progress=lambda line: None):
    """Measures sections -> {"threads", "machine", "sections": {name: {"date", "limits", "rows", "ladders"}}}. A row
    holds its work and, under "default" and "best", the summary of each variant."""
    missing = backends.available()["cpp"]
    if missing:
        raise ValueError(f"bench: {missing}")
    torch = importlib.util.find_spec("torch") is not None
    settings = settings if torch else ("default",)
    result = {"threads": threads, "sections": {}}
    start = time.perf_counter()
    for section in sections:
        rows, ladders, limits = {}, [], None
        for setting in settings:
            options = {"section": section, "setting": setting, "threads": threads, "torch": torch, "data": data,
                       "only": only, "tiny": tiny, "seconds": 0 if tiny else SECONDS[section]}
            for line in _worker(options):
                if "machine" in line:
                    result["machine"], limits = line["machine"], line["limits"]
                elif "ladder" in line:
                    ladders.append(line)
                else:
                    figures = {k: line.pop(k) for k in list(line) if isinstance(line[k], dict)}
                    rows.setdefault(line["work"], line)[setting] = figures
                what = line.get("work", "the machine's limits") + (f", {line['rung']}" if "rung" in line else "")
                progress(f"{time.perf_counter() - start:4.0f} s  {section}, {setting} settings: {what}")
        result["sections"][section] = {"date": datetime.date.today().isoformat(), "limits": limits,
                                       "rows": list(rows.values()), "ladders": ladders}
    return result


def _worker(options):
    """Yields what a worker process writes, line by line. ChildProcessError if it fails; its own words are on stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options["threads"])}
    if options["setting"] == "best":
        environment.update(MALLOC_KEEPS)
    command = [sys.executable, "-m", "minigpt.bench.worker", json.dumps(options)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise ChildProcessError(
            f"bench: the process measuring {options['section']} failed (exit code {process.returncode})")


def _progress(line):
    """One line that is overwritten on a terminal, lines one below the other in a file."""
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{line:<110.110}", end=end, file=sys.stderr, flush=True)


def write_json(path, result):
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
