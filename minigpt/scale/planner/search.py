"""The best layout, by trying all of them.

Tried are: tensor parallel sizes that divide heads and hidden layers and stay inside a node; every pipeline length and
expert-parallel size that divides what is left; micro-batches of 1 to 16 texts; up to 8 runs of layers a stage; the
three kinds of recomputation; ZeRO stages 1 to 3 (stage 0 sends as much as stage 1 and holds more). The rest of the GPUs
is data parallel. The best is the one that trains most tokens a second of those that fit in memory, or a simpler one
that is as fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .memory import RECOMPUTE
from .step import Estimate, Job, Layout, estimate, memory

MICRO_BATCHES = 1, 2, 4, 8, 16
CHUNKS = 1, 2, 4, 8
TIE = 0.01                      # layouts that differ by less in speed are as fast: the simplest of them is the best
BATCH_TOLERANCE = 0.10          # by how much the batch may differ from the one asked for, so that it can be split


@dataclass(frozen=True)
class Search:
    """What was found: `fitting` estimates, the best first, then the fastest; `too_large` pairs (layout, bytes), the
    smallest first; and how many layouts could not split the batch."""

    fitting: list[Estimate]
    too_large: list[tuple[Layout, float]]
    unsplit: int

    @property
    def tried(self) -> int:
        return len(self.fitting) + len(self.too_large) + self.unsplit


def search(job: Job, **fixed) -> Search:
    """Tries every layout of the job whose fields are as `fixed` (tensor=8, ...)."""
    limit, fitting, too_large, unsplit = usable_bytes(job), [], [], 0
    for layout in layouts(job, fixed):
        batch = nearest_batch(job.batch, layout)
        if abs(batch - job.batch) > BATCH_TOLERANCE * job.batch:
            unsplit += 1
            continue
        split = replace(job, batch=batch)
        held = sum(memory(split, layout).values())
        if held > limit:
            too_large.append((layout, held))
        else:
            fitting.append(estimate(split, layout))
    fitting.sort(key=lambda found: -found.tokens_per_second)
    if fitting:
        as_fast = [found for found in fitting if found.tokens_per_second >= (1 - TIE) * fitting[0].tokens_per_second]
        fitting.insert(0, fitting.pop(fitting.index(min(as_fast, key=_intricacy))))
    too_large.sort(key=lambda found: found[1])
    return Search(fitting, too_large, unsplit)


def _intricacy(found):
    layout = found.layout
    return layout.pipeline * layout.tensor * layout.expert, layout.zero, layout.chunks, -found.tokens_per_second


def usable_bytes(job: Job) -> float:
    return job.gpu.memory - job.assume.reserved_bytes


def nearest_batch(batch: int, layout: Layout) -> int:
    """The batch nearest to `batch` that the layout can split. Stages with several runs of layers take micro-batches in
    rounds of as many as there are stages."""
    unit = layout.data * layout.micro_batch * (layout.pipeline if layout.chunks > 1 else 1)
    return max(1, round(batch / unit)) * unit


def layouts(job: Job, fixed: dict) -> Iterator[Layout]:
    config, node = job.config, job.assume.gpus_per_node

    def choices(field, values):
        return [value for value in values if fixed.get(field, value) == value]

    for t in choices("tensor", divisors(job.gpus)):
        if t > node or config.n_head % t or config.n_inner % t or config.expert_inner % t:
            continue
        for p in choices("pipeline", divisors(job.gpus // t)):
            if p > config.n_layer:
                continue
            d = job.gpus // (t * p)
            experts = [e for e in divisors(d) if config.n_expert % e == 0] if config.n_expert else [1]
            for e in choices("expert", experts):
                for b in choices("micro_batch", MICRO_BATCHES):
                    for v in choices("chunks", [v for v in CHUNKS if v == 1 or p > 1 and p * v <= config.n_layer]):
                        for zero in choices("zero", (1, 2, 3) if d > 1 else (0,)):
                            for recompute in choices("recompute", RECOMPUTE):
                                yield Layout(d, t, p, e, b, v, zero, recompute)


def divisors(n: int) -> list[int]:
    small = [i for i in range(1, int(n**0.5) + 1) if n % i == 0]
    return sorted({*small, *(n // i for i in small)})
