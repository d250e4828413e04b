"""minigpt bench twin: a training step (forward, backward, clipping, AdamW) of the torch twin, this project's kernels
against torch's own in the same module, in float32 and bf16, eager and by torch.compile; beside them, GPT over ops.

All variants of a model run in one process, in turns (timing.py), from the same weights on the same batch, and their
first losses must agree. On the CPU these kernels know float32 only: for bf16 the arrays are widened before them and
rounded behind them, and the matrix products are torch's. What that costs stands in the table.
"""

import datetime
import itertools
import json
from pathlib import Path

import numpy as np

from ..config import ModelConfig
from ..model import GPT
from ..ops import load
from . import machine
from .timing import compare

FILE, TABLE = "twin.json", "twin.md"
SETTINGS = {  # name: (config, batch)
    "4 layers 128 wide, batch 12 x 64": (ModelConfig.preset("char"), 12),
    "4 layers 128 wide, Llama's shape, batch 12 x 64": (ModelConfig.preset("llama-char"), 12),
    "6 layers 384 wide, batch 8 x 256": (
        ModelConfig.preset("char", n_layer=6, n_head=6, n_embd=384, block_size=256), 8),
}
TINY = {"tiny": (ModelConfig.preset("char", n_layer=1, n_embd=16, n_head=2, block_size=8), 2)}
COMPILED = ("4 layers 128 wide, batch 12 x 64",)  # compiling costs a minute each
SECONDS = 12  # meant for the variants of one setting
ROUNDING = {"fp32": 1e-5, "bf16": 2.0**-7}  # how far first losses may be from that of GPT over ops, relatively
COLUMNS = ("minigpt", "torch", "minigpt, compiled", "torch, compiled")


def run(threads, keep, tiny, path, progress):
    """The command."""
    result = measure(threads, tiny, progress)
    print(table(result))
    if path:
        _write(path, result)
    if keep:
        from .tables import RESULTS
        _write(RESULTS / FILE, result)
        (RESULTS / TABLE).write_text(table(result) + "\n", encoding="utf-8")
        print(f"wrote {RESULTS / FILE} and {TABLE}")
    return 0


def measure(threads, tiny, progress):
    """-> {"date", "threads", "machine", "rows": [{"work", "precision", "tokens", variant: summary, ...}, ...]}."""
    import torch

    from ..scale.engine import TorchEngine  # noqa: F401  says what is missing before anything is measured
    torch.set_num_threads(threads)
    load("cpp").set_num_threads(threads)
    rows = []
    for work, (config, B) in (TINY if tiny else SETTINGS).items():
        batch = np.random.default_rng(0).integers(0, config.vocab_size, (2, B, config.block_size))
        steps = variants(config, batch, work in COMPILED)
        first = {name: step() for name, step in steps.items()}
        for (precision, column), loss in first.items():
            if abs(loss - first["fp32", "GPT over ops"]) > ROUNDING[precision] * loss:
                raise RuntimeError(f"bench twin: {work}: the first losses differ: {precision}, {column}: {loss}")
        progress(f"{work}: {len(steps)} variants")
        summaries = compare(steps, 0 if tiny else SECONDS)
        for precision in ROUNDING:
            found = {column: summary for (p, column), summary in summaries.items() if p == precision}
            rows.append({"work": work, "precision": precision, "tokens": batch[0].size, **found})
    return {"date": datetime.date.today().isoformat(), "threads": threads, "machine": machine.describe(), "rows": rows}


def variants(config, batch, compiled):
    """{(precision, column): a function that makes one step and returns its loss}."""
    from ..scale import TorchGPT
    from ..scale.engine import TorchEngine
    from ..train import TrainingArguments
    from ..train.engine import OpsEngine

    def stepper(engine):
        engine.begin()
        numbers = itertools.count(1)

        def step():
            loss, _ = engine.gradients([tuple(batch)])
            engine.step(next(numbers), 1e-5, 0.5)
            return loss

        return step

    steps = {("fp32", "GPT over ops"): stepper(OpsEngine(GPT(config), TrainingArguments()))}
    for precision in ROUNDING:
        for column in COLUMNS if compiled else COLUMNS[:2]:
            args = TrainingArguments(bf16=precision == "bf16", torch_compile="compiled" in column)
            steps[precision, column] = stepper(TorchEngine(TorchGPT(config, column.split(",")[0]), args))
    return steps


def table(result):
    """In Markdown."""
    lines = [f"Measured {result['date']} on {result['machine']['cpu']} ({result['machine']['isa']}) with "
             f"{result['threads']} threads, by `minigpt bench twin --keep`: tokens per second of a training step, "
             "median and quartiles; all of a model side by side in one process. ~: something else ran meanwhile.", "",
             "| model | precision | GPT over ops | " + " | ".join(f"twin, kernels of {c}" for c in COLUMNS)
             + " | minigpt's over torch's |", "|" + "---|" * (len(COLUMNS) + 4)]
    for row in result["rows"]:
        cells = [_tokens(row, column) for column in ("GPT over ops", *COLUMNS)]
        ratio = row["torch"]["median"] / row["minigpt"]["median"]
        lines.append(f"| {row['work']} | {row['precision']} | {' | '.join(cells)} | {ratio:.2f}x |")
    return "\n".join(lines)


def _tokens(row, column):
    if column not in row:
        return ""
    summary = row[column]
    low, high = (row["tokens"] / summary[q] / (row["tokens"] / summary["median"]) - 1 for q in ("q3", "q1"))
    return f"{'~' if summary['noisy'] else ''}{row['tokens'] / summary['median']:.0f} ({low:+.0%} {high:+.0%})"


def kept(results):
    """What TABLE must hold, or None if nothing is kept."""
    path = results / FILE
    return table(json.loads(path.read_text(encoding="utf-8"))) + "\n" if path.exists() else None


def _write(path, result):
    from . import write_json
    write_json(Path(path), result)
