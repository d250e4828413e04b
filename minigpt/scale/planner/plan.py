"""A whole plan as one dictionary of plain numbers (bytes, seconds, FLOPs): what --json prints, and what report.py and
picture.py show."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

from ...config import ModelConfig
from . import chinchilla
from .flops import training_flops
from .hardware import GPUS
from .memory import RECOMPUTE, kv_cache_bytes
from .search import CHUNKS, IDLE, MICRO_BATCHES, TIE, Search, search, usable_bytes
from .step import Estimate, Job, Layout, memory

SHOWN = 5                       # layouts beside the best


def make_plan(name: str, job: Job, tokens: float, fixed: dict | None = None, price: float | None = None,
              batch_given: bool = True) -> dict:
    """The plan of training job's model, called `name`, on `tokens` tokens. fixed holds fields of Layout that are given,
    price is that of a GPU-hour; the plan says where the batch was not given, but chosen by chinchilla.batch_tokens.
    ValueError, in one line, where no layout fits."""
    found = search(job, **(fixed or {}))
    if not found.fitting:
        raise ValueError(_nothing_fits(name, job, found))
    best = found.fitting[0]
    seconds = tokens / best.tokens_per_second
    hours, watts = job.gpus * seconds / 3600, job.gpu.watts * job.assume.server_factor * job.assume.pue
    return {
        "model": {"name": name, **model_figures(job.config, job.T, tokens), **{
            key: value for key, value in asdict(job.config).items()
            if key in ("n_layer", "n_embd", "n_head", "n_kv_head", "vocab_size", "n_expert", "n_expert_active")}},
        "compute_optimal": compute_optimal(training_flops(job.config, job.T) * tokens),
        "inference": inference_figures(job),
        "cluster": {"gpus": job.gpus, "gpu": _gpu_name(job.gpu), **asdict(job.gpu), "usable_bytes": usable_bytes(job)},
        "best": {**describe(best), "batch_texts": best.batch, "batch_tokens": best.batch * job.T,
                 "batch_given": batch_given},
        "training": {"tokens": tokens, "steps": math.ceil(tokens / (best.batch * job.T)), "seconds": seconds,
                     "gpu_hours": hours, "energy_kwh": hours * watts / 1000,
                     **({"cost": hours * price, "price": price} if price is not None else {})},
        "same_layout": memory_table(job, best),
        "search": {"tried": found.tried, "fitting": len(found.fitting), "too_large": len(found.too_large),
                   "batch_unsplit": found.unsplit, "rejected": rejected(found, job)},
        "assumptions": asdict(job.assume),
    }


def model_figures(config: ModelConfig, T: int, tokens: float) -> dict:
    """Parameters and FLOPs of a model on texts of T tokens."""
    active = config.num_active_parameters()
    return {"parameters": config.num_parameters(), "active_parameters": active, "T": T,
            "flops_per_token_6N": 6 * active, "flops_per_token": training_flops(config, T),
            "flops_per_token_full_recomputation": training_flops(config, T, "full"),
            "forward_flops_per_token": config.forward_flops(T), "training_flops": training_flops(config, T) * tokens}


def compute_optimal(flops: float) -> dict:
    """The dense model that these FLOPs train best, by both sets of constants, and the tokens of a step."""
    laws = {"refit": chinchilla.REFIT, "printed": chinchilla.PRINTED}
    sizes = {name: dict(zip(("parameters", "tokens"), law.best_size(flops), strict=True)) for name, law in laws.items()}
    return {"flops": flops, **sizes, "batch_tokens": chinchilla.batch_tokens(flops)}


def inference_figures(job: Job) -> dict:
    """What generating from the model takes: 16-bit weights, and keys and values of a text of T tokens."""
    weights, cache = 2 * job.config.num_parameters(), kv_cache_bytes(job.config, job.T)
    return {"weight_bytes": weights, "kv_cache_bytes_per_token": kv_cache_bytes(job.config), "kv_cache_bytes": cache,
            "gpus_at_least": math.ceil((weights + cache) / usable_bytes(job))}


def describe(found: Estimate) -> dict:
    total = sum(found.seconds.values())
    return {"layout": asdict(found.layout), "gpus": found.layout.gpus, "micro_batches": found.micro_batches,
            "memory": found.memory, "memory_bytes": sum(found.memory.values()), "seconds": found.seconds,
            "step_seconds": total, "sent": found.sent, "tokens_per_second": found.tokens_per_second,
            "mfu": found.mfu, "hfu": found.hfu}


def memory_table(job: Job, best: Estimate) -> list[dict]:
    """What the best layout would hold with each ZeRO stage and kind of recomputation."""
    job, rows = replace(job, batch=best.batch), []
    for recompute in RECOMPUTE:
        for zero in range(4):
            held = sum(memory(job, replace(best.layout, zero=zero, recompute=recompute)).values())
            rows.append({"recompute": recompute, "zero": zero, "bytes": held, "fits": held <= usable_bytes(job)})
    return rows


def rejected(found: Search, job: Job) -> list[dict]:
    """The best of the other ways to split the model (tensor, pipeline, expert), and why each was not taken: slower, or,
    where none of its variants fits, too large."""
    best, seen, rows = found.fitting[0], set(), []

    def first_of(layout):
        split = layout.tensor, layout.pipeline, layout.expert
        return not (split in seen or seen.add(split))

    first_of(best.layout)
    for other in found.fitting:
        if first_of(other.layout):
            slower = best.tokens_per_second / other.tokens_per_second
            reason = f"{slower:.2f} times as long" if slower > 1 + TIE else "as fast, less simple"
            rows.append({"layout": asdict(other.layout), "reason": reason})
    slower = rows[:SHOWN]
    rows = [{"layout": asdict(layout), "reason": does_not_fit(held, job)} for layout, held in found.too_large
            if first_of(layout)]
    return slower + rows[:SHOWN]


def does_not_fit(held, job):
    return f"does not fit: {held / 1e9:,.0f} GB of {usable_bytes(job) / 1e9:,.0f}"


def layout_name(layout: dict | Layout) -> str:
    values = layout if isinstance(layout, dict) else asdict(layout)
    return " ".join(f"{field} {values[field]}" for field in ("data", "tensor", "pipeline")) + (
        f" expert {values['expert']}" if values["expert"] > 1 else "") + (
        f" micro-batch {values['micro_batch']}" + (f" chunks {values['chunks']}" if values["chunks"] > 1 else "")
        + f" ZeRO {values['zero']} recompute {values['recompute']}")


def _gpu_name(gpu):
    return next((name for name, other in GPUS.items() if other == gpu), "gpu")


def _nothing_fits(name, job, found):
    gpus = f"{job.gpus:,} {_gpu_name(job.gpu)}"
    if not found.tried:
        return (f"plan: no layout of {gpus} has the sizes asked for: tensor * pipeline * data is {job.gpus:,}, or "
                f"up to {IDLE:.0%} less, tensor at most {job.assume.gpus_per_node} and a divisor of the "
                f"{job.config.n_head} heads, the {job.config.n_kv_head} of keys and values and the hidden layers, "
                f"pipeline at most {job.config.n_layer}, expert a divisor of data and of "
                f"{job.config.n_expert or 1} experts, micro-batch one of {MICRO_BATCHES}, chunks one of {CHUNKS}")
    if not found.too_large:
        return (f"plan: no layout of {gpus} splits a batch of {job.batch:,} texts of {job.T:,} tokens: "
                "give a larger --batch-tokens, or another number of --gpus")
    layout, held = found.too_large[0]
    states = sum((job.precision.weight, job.precision.gradient, job.precision.optimizer)) * job.config.num_parameters()
    hint = f"weights, gradients and optimiser alone fill {math.ceil(states / usable_bytes(job)):,} of these"
    if job.gpus % 2 and job.gpus > 1:
        hint += f"; {job.gpus:,} is odd, whole nodes of {job.assume.gpus_per_node} can be split in more ways"
    return f"plan: {name} {does_not_fit(held, job)} in the smallest layout of {gpus} ({layout_name(layout)}); {hint}"


