"""The best layout, by trying all of them.

Tried are: all GPUs, and a few less that can be split in more ways; tensor parallel sizes that divide heads (of keys and
values too) and hidden layers and stay inside a node; every pipeline length and expert-parallel size that divides what
is left; micro-batches of 1 to 16 texts; up to 8 runs of layers a stage; the three kinds of recomputation; ZeRO stages 1
to 3 (stage 0 sends as much as stage 1 and holds more; without data parallelism all stages are 0). The rest of the GPUs
is data parallel. The best is the one that trains most tokens a second of those that fit in memory, or a simpler one
that is as fast.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .memory import RECOMPUTE
from .step import Estimate, Job, Layout, estimate, memory

MICRO_BATCHES = 1, 2, 4, 8, 16
CHUNKS = 1, 2, 4, 8
TIE = 0.01                      # layouts that differ by less in speed are as fast: the simplest of them is the best
IDLE = 0.03                     # of the GPUs may stand idle, where the others are split better
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

    for gpus in gpu_counts(job):
        for t in choices("tensor", divisors(gpus)):
            if t > node or any(size % t for size in (config.n_head, config.n_kv_head, config.n_inner,
                                                     config.expert_inner)):
                continue
            for p in choices("pipeline", divisors(gpus // t)):
                if p <= config.n_layer:
                    d = gpus // (t * p)
                    runs = choices("chunks", [v for v in CHUNKS if v == 1 or p > 1 and p * v <= config.n_layer])
                    experts = [e for e in divisors(d) if config.n_expert % e == 0] if config.n_expert else [1]
                    stages = choices("zero", (1, 2, 3)) if d > 1 else [0]
                    for e, b, v, zero, recompute in itertools.product(
                            choices("expert", experts), choices("micro_batch", MICRO_BATCHES), runs, stages,
                            choices("recompute", RECOMPUTE)):
                        yield Layout(d, t, p, e, b, v, zero, recompute)


def gpu_counts(job: Job) -> list[int]:
    """The job's GPUs, and down to 3 % fewer: rounded down to whole nodes, to pairs of nodes, to fours, to eights ..."""
    idle = {0, *(job.gpus % (job.assume.gpus_per_node << i) for i in range(job.gpus.bit_length()))}
    return [job.gpus - rest for rest in sorted(idle) if rest <= IDLE * job.gpus]


def divisors(n: int) -> list[int]:
    small = [i for i in range(1, int(n**0.5) + 1) if n % i == 0]
    return sorted({*small, *(n // i for i in small)})
