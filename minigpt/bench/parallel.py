"""Several ranks, one curve: the same run by one process and by two ranks in each layout, once with a rank killed.

    minigpt bench parallel --data tutorials/data/shakespeare.txt

It says how far apart the curves are, and how fast each run was. With --keep it draws the curves on top of each other,
in minigpt/bench/results; with --tiny it tries it all in a few steps.
The global batch is the same in all runs. The run "fsdp, killed" loses a rank to SIGKILL after its second checkpoint,
and torchrun starts both anew. One process has as many threads as there are ranks, which have one each.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ..files.atomic import atomic_write

PICTURE = Path(__file__).parent / "results" / "parallel.png"
BATCH, STEPS, EVERY, RANKS = 12, 100, 15, 2
TINY_STEPS, TINY_EVERY = 40, 5
TINY = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "16", "--warmup-steps", "2"]
RUNS = {"one process": None, "ddp": "ddp", "fsdp": "fsdp", "tp": "tp=2", "fsdp, killed": "fsdp"}
ALLOWED = 1e-4  # of a difference between losses, relative: float32, added up in another order


def train(folder, data, layout, kill=False, tiny=False):
    """One run of `minigpt train`; returns its losses, (steps,), and its tokens per second, the median."""
    steps, every = (TINY_STEPS, TINY_EVERY) if tiny else (STEPS, EVERY)
    ranks = RANKS if layout else 1
    batch = BATCH // RANKS if layout in ("ddp", "fsdp") else BATCH
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", "1"] if layout else []
    options = {"data": data, "out": folder, "engine": "torch", "max-steps": steps, "per-device-train-batch-size": batch,
               "logging-steps": 1, "save-steps": every, "eval-steps": steps, "eval-fraction": 0.02,
               **({"parallel": layout} if layout else {})}
    command = [sys.executable, *launcher, "-m", "minigpt", "train",
               *(str(word) for name, value in options.items() for word in (f"--{name}", value)), *(TINY * tiny)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(RANKS // ranks),
                   "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=environment, **quiet) as job:
        if kill:
            while job.poll() is None and not (folder / f"checkpoint-{2 * every}").exists():
                time.sleep(0.01)
            children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
        _, errors = job.communicate()
    if job.returncode:
        raise ChildProcessError(f"bench parallel: {folder.name} failed (exit code {job.returncode}): {errors}")
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [entry for entry in entries if "loss" in entry]
    return (np.array([entry["loss"] for entry in logged]),
            float(np.median([entry["tokens_per_second"] for entry in logged])))


def draw(curves, path):
    """Losses above, distances from one process below. Returns False where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4.6), dpi=130, layout="constrained")
    losses, distances = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = np.arange(1, STEPS + 1)
    for number, (name, values) in enumerate(curves.items()):
        losses.plot(steps, values, f"C{number}", linewidth=7 - 1.4 * number, alpha=0.5 + 0.1 * number,
                    label=f"{name}, loss {values[-1]:.6f} at the end")
        if number:
            distances.semilogy(steps, np.abs(values - curves["one process"]) + 1e-9, f"C{number}", linewidth=1.2)
    losses.axvline(2 * EVERY, color="0.5", linestyle=":", linewidth=1)
    losses.annotate("a rank is killed", (2 * EVERY, 0.92), xycoords=("data", "axes fraction"), fontsize=8)
    losses.set_ylabel("loss (nats per character)")
    distances.set(xlabel="step", ylabel="distance from\none process")
    losses.legend(frameon=False)
    for axes in (losses, distances):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
    return True


def run(data, keep, tiny, progress):
    """The command: prints what was found, with `keep` draws the picture, and returns 1 if a curve is another."""
    curves, speeds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, layout in RUNS.items():
            progress(f"{name}, {TINY_STEPS if tiny else STEPS} steps")
            curves[name], speeds[name] = train(Path(folder) / name, data, layout, kill="killed" in name, tiny=tiny)
    worst = 0.0
    for name, values in curves.items():
        far = float(np.max(np.abs(values / curves["one process"] - 1)))
        worst = max(worst, far)
        ranks = f"{RANKS} ranks of one thread" if RUNS[name] else f"{RANKS} threads"
        print(f"{name:13} {ranks:21}  {speeds[name]:7,.0f} tokens/s  loss {values[0]:.6f} -> {values[-1]:.6f}, "
              f"at most {far:.1e} from one process")
    if keep and draw(curves, PICTURE):
        print(f"wrote {PICTURE}")
    return int(not worst <= ALLOWED)
