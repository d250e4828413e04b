"""One training step in one layout: what each GPU holds, what it does, and how long that takes.

The pipeline's stages are the unit: memory and time are computed for each, and those of the worst stage count. GPUs are
numbered tensor first, so that its group shares a node, then data, over part of which experts are spread, then pipeline.
"""

from __future__ import annotations

import functools
from dataclasses import astuple, dataclass

import numpy as np

from ...config import ModelConfig
from .flops import Layer, layers, training_flops
from .hardware import Assumptions, Gpu, Precision
from .links import all_to_all_seconds, ring_bytes, ring_speed
from .memory import activation_bytes, state_bytes

# Of each kept number: written and read in the forward pass, twice if that runs twice; in the backward pass read, and
# its gradient written and read. What the matrix products do with their operands is in their efficiency.
TRAFFIC = {3: 5, 4: 7}

# By ZeRO stage: how many rings of weights (all-gather: 1) and of gradients (reduce-scatter: 1, all-reduce: 2) the
# data-parallel GPUs need once a step, and then in each micro-batch (arXiv:1910.02054, section 7). Stage 2 gives its
# gradients away after each micro-batch, stage 3 also gathers the weights for the forward and the backward pass.
DATA_PARALLEL = {0: ((0, 2), (0, 0)), 1: ((1, 1), (0, 0)), 2: ((1, 0), (0, 1)), 3: ((0, 0), (2, 1))}


@dataclass(frozen=True)
class Job:
    """What is to be trained, and on what."""

    config: ModelConfig
    T: int                      # tokens of a text
    batch: int                  # texts of a step, on all GPUs together
    gpu: Gpu
    gpus: int
    precision: Precision
    assume: Assumptions = Assumptions()


@dataclass(frozen=True)
class Layout:
    """How a model and its batch are spread over data * tensor * pipeline GPUs."""

    data: int = 1               # groups of GPUs that hold the same weights and read different texts
    tensor: int = 1             # GPUs that share each matrix product
    pipeline: int = 1           # stages of layers
    expert: int = 1             # data-parallel GPUs that a layer's experts are spread over
    micro_batch: int = 1        # texts that go through the pipeline together
    chunks: int = 1             # separate runs of layers that a stage holds; 1: plain 1F1B
    zero: int = 1               # ZeRO stage: what data-parallel GPUs share out, see memory.state_bytes
    recompute: str = "selective"

    @property
    def gpus(self) -> int:
        return self.data * self.tensor * self.pipeline


@dataclass(frozen=True)
class Estimate:
    """Of one step. `memory` is that of the fullest GPU, by part; `seconds` follow one another, by what they go into;
    `sent` holds the bytes that a GPU of the slowest stage sends, by purpose."""

    layout: Layout
    batch: int
    micro_batches: int
    memory: dict[str, float]
    seconds: dict[str, float]
    sent: dict[str, float]
    tokens_per_second: float
    mfu: float                  # the model's FLOPs, nothing counted twice, over the peak of the layout's GPUs
    hfu: float                  # the same with what is recomputed


def bubble(pipeline: int, micro_batches: int, chunks: int = 1) -> float:
    """Idle time over useful time: (p - 1) / (m v). Its share of all time is bubble / (1 + bubble)."""
    return (pipeline - 1) / (micro_batches * chunks)


def utilisation(tokens_per_second: float, flops_per_token: float, gpus: int, peak: float) -> float:
    """Model FLOPs utilisation, MFU (PaLM, arXiv:2204.02311, appendix B)."""
    return tokens_per_second * flops_per_token / (gpus * peak)


def estimate(job: Job, layout: Layout) -> Estimate:
    """The step's time and memory. data * micro_batch must divide the batch."""
    m = job.batch // (layout.data * layout.micro_batch)
    seconds, sent = _seconds(job, layout, m)
    rate, peak = job.batch * job.T / sum(seconds.values()), job.gpu.peak * job.precision.speed
    again = layout.recompute if layout.recompute == "full" or not job.assume.fused_attention else "none"
    return Estimate(layout, job.batch, m, memory(job, layout), seconds, sent, rate,
                    *(utilisation(rate, training_flops(job.config, job.T, kind), layout.gpus, peak)
                      for kind in ("none", again)))


def memory(job: Job, layout: Layout) -> dict[str, float]:
    """{part: bytes} on the fullest GPU."""
    t, p, v, options = layout.tensor, layout.pipeline, layout.chunks, _activation_options(job, layout)
    stages, tokens = _stages(job.config, job.T, p, v), layout.micro_batch * job.T
    per_dense = state_bytes(1, job.precision, layout.zero, layout.data)
    per_expert = state_bytes(1, job.precision, layout.zero, layout.data // layout.expert)
    parts = {part: (stages.dense * per_dense[part] + stages.experts / layout.expert * per_expert[part]) / t
             for part in per_dense}                                                                 # (p,) each
    after, m = p - 1 - np.arange(p), job.batch // (layout.data * layout.micro_batch)   # stages that follow
    waiting = after + 1 if v == 1 else (2 * after + (v - 1) * p + 1) / v      # micro-batches before their backward pass
    parts["activations"] = np.minimum(waiting, m) * activation_bytes(stages, tokens, recompute=layout.recompute,
                                                                     **options)
    working, largest = np.zeros(p), _largest_layer(job.config, job.T)
    if layout.recompute == "full":                          # what one layer keeps while it is computed again
        working += activation_bytes(largest, tokens, recompute=_scores(job, layout), **options)
    layer, ends = largest.dense + largest.experts / layout.expert, _ends(job.config, p)
    if layout.zero >= 2:                                    # the whole gradient of what is about to be shared out
        working += np.maximum(layer, ends) / t * job.precision.gradient
    if layout.zero >= 3:                                    # whole weights of a layer and the next one on its way; the
        working += (2 * layer + ends) / t * job.precision.weight        # ends' embedding and head stay gathered
    working[-1] += tokens * 4 * job.config.vocab_size / t   # logits in fp32
    parts["working space"] = working
    fullest = np.argmax(sum(parts.values()))
    return {part: float(values[fullest]) for part, values in parts.items()}


def _seconds(job, layout, m):
    """({part: seconds of the step}, {purpose: bytes that one GPU sends in it}), of the slowest stage."""
    stages = _stages(job.config, job.T, layout.pipeline, layout.chunks)
    work, sent = _micro_batch(job, layout, stages)
    slowest = np.argmax(sum(work.values()))
    work = {part: float(seconds[slowest]) for part, seconds in work.items()}
    one = sum(work.values())
    seconds = {part: m * each for part, each in work.items()}
    seconds["pipeline bubble"] = bubble(layout.pipeline, m, layout.chunks) * m * one

    t, d, e = layout.tensor, layout.data, layout.expert
    held = (stages.dense[slowest] / t, d, t), (stages.experts[slowest] / (t * e), d // e, t * e)
    # of each: weights, the GPUs that share them, their stride
    once, every = ([(ring_bytes(N * job.precision.weight, n, gathers) + ring_bytes(N * job.precision.gradient, n, sums),
                     n, stride) for N, n, stride in held] for gathers, sums in DATA_PARALLEL[layout.zero])
    takes_once, takes = (sum(size / ring_speed(job.gpu, job.assume, n, stride) for size, n, stride in rings)
                         for rings in (once, every))
    behind = work["matrix products"] + work["memory traffic"] if job.assume.overlap else 0.0    # what sends nothing
    seconds["data parallel"] = float((m - 1) * max(0.0, takes - behind) + max(0.0, takes_once + takes - behind))
    states = sum(sum(state_bytes(N, job.precision, layout.zero, n).values()) for N, n, _ in held)
    seconds["optimizer"] = float(2 * states / (job.gpu.bandwidth * job.assume.memory_efficiency))   # read and written
    return seconds, {purpose: m * float(S[slowest]) for purpose, S in sent.items()} | {
        "data parallel": float(sum(size for size, *_ in once) + m * sum(size for size, *_ in every))}


def _micro_batch(job, layout, stages):
    """({part: seconds}, {purpose: bytes that a GPU sends}) of a micro-batch in each stage, (p,) each."""
    gpu, assume, t, p, C = job.gpu, job.assume, layout.tensor, layout.pipeline, job.config.n_embd
    tokens, size = layout.micro_batch * job.T, job.precision.activation
    passes = 4 if layout.recompute == "full" else 3         # forward, (again,) and a backward pass worth two
    sends = 2 * (passes - 1)                                # a layer exchanges twice a pass, backward as forward
    again = layout.recompute == "selective" and not assume.fused_attention    # attention, unless fused
    shared = t if assume.sequence_parallel else 1

    flops = stages.linear * passes + stages.attention * (passes + again)                            # a token's
    flops[-1] += 6 * job.config.vocab_size * C
    kept = activation_bytes(stages, tokens, recompute=_scores(job, layout), **_activation_options(job, layout))
    reduced = tokens * stages.width * size                  # the branches' outputs, added up over the tensor's GPUs
    routed = tokens * stages.routed * C * size / shared     # the tokens' copies, to the experts or back
    passed = np.full(p, 2.0 * tokens * C * size / shared * layout.chunks * (p > 1))        # to the next stage, and back
    work = {
        "matrix products": flops * tokens / t / (gpu.peak * job.precision.speed * gpu.reached * assume.shapes),
        "memory traffic": kept * TRAFFIC[passes] / (gpu.bandwidth * assume.memory_efficiency),
        "tensor parallel": ring_bytes(reduced, t, 2) * sends / ring_speed(gpu, assume, t, 1),
        "expert parallel": all_to_all_seconds(gpu, assume, routed, layout.expert, t) * sends,
        "pipeline sends": passed / ring_speed(gpu, assume, 2, t * layout.data)}
    return work, {"tensor parallel": ring_bytes(reduced, t, 2) * sends,
                  "expert parallel": ring_bytes(routed, layout.expert) * sends, "pipeline sends": passed}


def _scores(job, layout):
    """What a layer computes with: attention's scores go through memory ("none") or do not ("selective")."""
    return "none" if layout.recompute == "none" or not job.assume.fused_attention else "selective"


def _activation_options(job, layout):
    return dict(tensor=layout.tensor, sequence_parallel=job.assume.sequence_parallel, dropout=job.assume.dropout,
                size=job.precision.activation)


@functools.lru_cache(maxsize=8)
def _largest_layer(config, T):
    return max(layers(config, T), key=lambda layer: layer.dense + layer.experts)


@functools.lru_cache(maxsize=1024)
def _stages(config, T, pipeline, chunks):
    """Layer's fields summed over each stage's layers, as arrays (pipeline,). The layers are dealt out in
    pipeline * chunks runs as equal as possible, the longer ones in the middle: the ends have embedding and head."""
    runs = pipeline * chunks
    size, longer = divmod(config.n_layer, runs)
    first = (runs - longer + 1) // 2
    ends = np.cumsum([0, *(size + (first <= run < first + longer) for run in range(runs))])
    table = np.array([astuple(layer) for layer in layers(config, T)], dtype=np.float64)             # (L, fields)
    sums = np.concatenate([np.zeros((1, table.shape[1])), np.cumsum(table, axis=0)])
    per_stage = (sums[ends[1:]] - sums[ends[:-1]]).reshape(chunks, pipeline, -1).sum(axis=0)        # (pipeline, fields)
    stages = Layer(*per_stage.T)
    if config.share_layers:                                 # all layers of a stage are one block
        stages.dense[:] /= stages.width / config.n_embd
        stages.experts[:] /= stages.width / config.n_embd
    stages.dense[:] += _ends(config, pipeline)
    for values in vars(stages).values():
        values.setflags(write=False)                        # the cache hands out the same arrays again
    return stages


def _ends(config, pipeline):
    """(p,): parameters of each stage outside its layers, which are gathered and shared out together, as FSDP does: the
    embeddings in the first, the head in the last, a copy where it is tied. The last norm is left out."""
    table = config.vocab_size * config.n_embd
    ends = np.zeros(pipeline)
    ends[0] += table + (config.block_size * config.n_embd if config.position == "learned" else 0)
    ends[-1] += table if not config.tied or pipeline > 1 else 0
    return ends
