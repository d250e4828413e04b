"""Plans beside runs that took place: published.md is made from here (`minigpt plan --published`), and a test fails
where it is stale.

What a row's source leaves open (micro-batch and runs of layers on the H100s, recomputation too) is what the search
finds best; everything else is as it was run.
"""

from __future__ import annotations

from dataclasses import replace

from ...config import ModelConfig
from .flops import training_flops
from .hardware import GPUS, PRECISIONS, Assumptions
from .report import number
from .search import search
from .step import Estimate, Job, Layout, estimate

# Narayanan et al. 2021 (arXiv:2104.04473), table 1: A100, V = 51200, T = 2048, full recomputation, no sequence
# parallelism, unfused attention.
# layers, width, heads, tensor, pipeline, data, batch, micro-batch, chunks, TFLOP/s a GPU
MEGATRON = {
    "1.7B": (24, 2304, 24, 1, 1, 32, 512, 16, 1, 137),
    "3.6B": (30, 3072, 32, 2, 1, 32, 512, 16, 1, 138),
    "7.5B": (36, 4096, 32, 4, 1, 32, 512, 16, 1, 142),
    "18.4B": (40, 6144, 48, 8, 1, 32, 1024, 8, 1, 135),
    "39.1B": (48, 8192, 64, 8, 2, 32, 1536, 4, 1, 138),
    "76.1B": (60, 10240, 80, 8, 4, 32, 1792, 2, 3, 140),
    "145.6B": (80, 12288, 96, 8, 8, 24, 2304, 2, 2, 148),
    "310.1B": (96, 16384, 128, 8, 16, 15, 2160, 1, 2, 155),
    "529.6B": (105, 20480, 128, 8, 35, 9, 2520, 1, 3, 163),
    "1008.0B": (128, 25600, 160, 8, 64, 6, 3072, 1, 1, 163),
}
MEGATRON_ASSUMED = Assumptions(fused_attention=False, dropout=True, sequence_parallel=False, overlap=False)

# Megatron-Core's README: H100, V = 131072, T = 4096, 48 data-parallel groups.
# layers, width, heads, tensor, pipeline, batch, TFLOP/s a GPU, printed MFU in %
MEGATRON_CORE = {
    "1.7B": (24, 2048, 16, 1, 1, 192, 408.8, 41),
    "7.1B": (30, 4096, 32, 2, 1, 192, 465.9, 47),
    "16B": (32, 6144, 48, 4, 1, 192, 489.1, 49),
    "32B": (48, 7168, 56, 8, 1, 192, 459.6, 46),
    "70B": (84, 8192, 64, 8, 2, 384, 419.7, 42),
    "119B": (92, 10240, 80, 8, 4, 768, 420.5, 43),
    "177B": (96, 12288, 96, 8, 6, 1152, 432.8, 44),
    "314B": (96, 16384, 128, 8, 8, 1536, 474.4, 48),
    "462B": (112, 18432, 144, 8, 16, 3072, 459.9, 47),
}

# Llama 3 (arXiv:2407.21783), table 4, the rows without context parallelism, T = 8192, nothing recomputed:
# GPUs, pipeline, TFLOP/s a GPU
LLAMA3_405B = {"405B on 8,192": (8192, 16, 430), "405B on 16,384": (16384, 16, 400)}

# Whole trainings. DeepSeek-V3 (arXiv:2412.19437): table 1, sections 3.1 and 4.2; its H800 is an H100 with less NVLink.
# Llama 3.1's model card: the hours of all of its pre-training.
# tokens, GPU-hours
TRAININGS = {"DeepSeek-V3, H800": (14.8e12, 2.664e6), "Llama 3.1 405B, H100": (15.6e12, 30.84e6)}


def megatron(name: str) -> tuple[Job, Layout]:
    """One of MEGATRON's rows as a job and the layout it ran in."""
    L, C, H, t, p, d, batch, b, chunks, _ = MEGATRON[name]
    config = ModelConfig(vocab_size=51200, block_size=2048, n_layer=L, n_head=H, n_embd=C)
    job = Job(config, 2048, batch, GPUS["a100"], t * p * d, PRECISIONS["fp16"], MEGATRON_ASSUMED)
    return job, Layout(d, t, p, 1, b, chunks, 0, "full")


def megatron_core(name: str) -> tuple[Job, dict]:
    """One of MEGATRON_CORE's rows as a job and what is known of its layout."""
    L, C, H, t, p, batch, *_ = MEGATRON_CORE[name]
    config = ModelConfig(vocab_size=131072, block_size=4096, n_layer=L, n_head=H, n_embd=C, position="rope",
                         tied=False)
    return Job(config, 4096, batch, GPUS["h100"], t * p * 48, PRECISIONS["bf16"]), dict(tensor=t, pipeline=p)


def llama3(name: str) -> tuple[Job, dict]:
    gpus, p, _ = LLAMA3_405B[name]
    job = Job(ModelConfig.preset("llama3-405b"), 8192, 2048, GPUS["h100"], gpus, PRECISIONS["bf16"])
    return job, dict(tensor=8, pipeline=p)


def training(name: str) -> tuple[Job, dict]:
    """One of TRAININGS as a job and what is known of its layout."""
    if name.startswith("Llama"):
        return llama3("405B on 16,384")
    h800 = replace(GPUS["h100"], nvlink=200e9)
    job = Job(ModelConfig.preset("deepseek-v3"), 4096, 15360, h800, 2048, PRECISIONS["bf16"])
    return job, dict(tensor=1, pipeline=16, expert=64, zero=1)


def gpu_hours(found: Estimate, tokens: float, without: str | None = None) -> float:
    """Of training on so many tokens by the estimated steps; without one of Estimate.seconds."""
    share = 1 - found.seconds[without] / sum(found.seconds.values()) if without else 1.0
    return share * tokens / found.tokens_per_second * found.layout.gpus / 3600


def comparisons():
    """Yields (source, name, job, estimate, TFLOP/s a GPU measured, MFU or HFU planned)."""
    for name, row in MEGATRON.items():
        job, layout = megatron(name)
        found = estimate(job, layout)
        yield "Megatron-LM, A100", name, job, found, row[-1], found.hfu
    for source, rows, make, measured in (("Megatron-Core, H100", MEGATRON_CORE, megatron_core, -2),
                                         ("Llama 3, H100", LLAMA3_405B, llama3, -1)):
        for name, row in rows.items():
            job, fixed = make(name)
            found = search(job, **fixed).fitting[0]
            yield source, name, job, found, row[measured], found.mfu


def markdown() -> str:
    """The page."""
    lines = [PAGE, "", "| run | parameters | GPUs | tensor, pipeline, data | micro-batch, chunks, recomputation "
             "| memory | measured | planned | error |", "|---|---|---|---|---|---|---|---|---|"]
    errors = {}
    for source, name, job, found, measured, share in comparisons():
        planned, layout = share * job.gpu.peak / 1e12, found.layout
        errors.setdefault(source, []).append(planned / measured - 1)
        lines.append(f"| {source}, {name} | {number(job.config.num_parameters())} | {job.gpus:,} | {layout.tensor}, "
                     f"{layout.pipeline}, {layout.data} | {layout.micro_batch}, {layout.chunks}, {layout.recompute} | "
                     f"{sum(found.memory.values()) / 1e9:.0f} GB | {measured:g} | {planned:.0f} | "
                     f"{errors[source][-1]:+.0%} |")
    means = "; ".join(f"{source}: {sum(map(abs, each)) / len(each):.0%}" for source, each in errors.items())
    return "\n".join([*lines, "", f"Mean size of the error: {means}.", *_trainings(), *_counts()])


PAGE = """\
# Plans beside published runs

Made by `minigpt plan --published`. Measured and planned: TFLOP/s of a GPU, as the source counts them (Megatron-LM with
what was recomputed, the others without). Megatron-LM's rows are planned in the layout in which they ran; one constant,
`shapes`, was fitted to their mean. Nothing was fitted to the others: there the source gives tensor and pipeline sizes
alone, and the rest is the best that the search finds. Small models on H100s are planned too fast: what a GPU waits for
between short kernels is not in the plan. Llama 3 recomputed nothing: on 8,192 GPUs, by this planner's count of what
several runs of layers keep, that does not fit, so the plan recomputes, and is slower."""


def _trainings():
    lines = ["| training | GPUs | tensor, pipeline, expert, data | micro-batch, chunks, recomputation | tokens | "
             "GPU-hours | planned | error | without the experts' traffic |",
             "|---|---|---|---|---|---|---|---|---|"]
    for name, (tokens, hours) in TRAININGS.items():
        job, fixed = training(name)
        found = search(job, **fixed).fitting[0]
        layout, planned = found.layout, gpu_hours(found, tokens)
        bare = number(gpu_hours(found, tokens, "expert parallel")) if job.config.n_expert else ""
        lines.append(f"| {name} | {job.gpus:,} | {layout.tensor}, {layout.pipeline}, {layout.expert}, {layout.data} | "
                     f"{layout.micro_batch}, {layout.chunks}, {layout.recompute} | {number(tokens)} | "
                     f"{number(hours)} | {number(planned)} | {planned / hours - 1:+.0%} | {bare} |")
    return ["", TRAININGS_TEXT, "", *lines]


TRAININGS_TEXT = """\
Whole trainings, in GPU-hours. Llama's hold longer texts too, and all that a plan of the steps leaves out. The plan of
DeepSeek-V3 is no forecast: it computes in 16 bits, sends one 16-bit copy of a token to each of its eight experts, and
hides nothing of that; DeepSeek-V3 computed in FP8, sent a token to at most four nodes, there in FP8, and hid it behind
computing. Mixtures whose experts are spread over many nodes are planned too slow."""


# ---------------------------------------------------------------------------------------------------------------
# counts

# Brown et al. 2020, tables 2.1 and D.1: parameters in millions, FLOPs of 300 billion tokens, as printed
GPT3 = {"small": (125, 2.25e20), "medium": (356, 6.41e20), "large": (760, 1.37e21), "xl": (1320, 2.38e21),
        "2.7b": (2650, 4.77e21), "6.7b": (6660, 1.20e22), "13b": (12850, 2.31e22), "175b": (174600, 3.14e23)}


def _counts():
    lines = ["", "GPT-3's own table (Brown et al. 2020, table D.1), with 6 FLOPs a parameter and token and 300 billion",
             "tokens, and beside it what attention adds, dense in all layers (GPT-3's alternated with sparse):", "",
             "| model | parameters printed | counted | FLOPs printed | 6 N D | with dense attention |",
             "|---|---|---|---|---|---|"]
    for name, (millions, flops) in GPT3.items():
        config = ModelConfig.preset(f"gpt3-{name}")
        N = config.num_parameters()
        lines.append(f"| {name} | {millions:,} M | {N:,} | {flops:.2e} | {6 * N * 300e9:.2e} | "
                     f"{training_flops(config, 2048) * 300e9:.2e} |")
    return lines
