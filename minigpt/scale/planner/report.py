"""A plan as text."""

from __future__ import annotations

from .plan import layout_name

ASSUMED = {
    "shapes": "of the best matrix product's speed, by a transformer's shapes (fitted to Megatron-LM's runs)",
    "memory_efficiency": "of the memory's bandwidth, by everything else (a guess)",
    "link_efficiency": "of NVLink's and the network's speed, by collectives (a guess)",
    "gpus_per_node": "GPUs joined by NVLink; --gpus-per-node",
    "reserved_bytes": "of each GPU's memory, left to CUDA, NCCL and fragmentation (a guess)",
    "server_factor": "watts of a server for each watt of its GPUs (a guess)",
    "pue": "watts of the data centre for each watt of its servers; --pue",
    "fused_attention": "scores stay in registers, unless recompute is none",
    "dropout": "masks of dropout are kept",
    "sequence_parallel": "tensor-parallel GPUs share what lies between matrix products",
    "overlap": "data-parallel traffic hides behind one micro-batch's computing",
}
EXAMPLE = {"moe-1.8t": " (an example of a mixture of that size, the shape of no known model)"}


def text(plan: dict) -> str:
    best, cluster = plan["best"], plan["cluster"]
    parts = [_model(plan["model"]), compute_optimal(plan["compute_optimal"]), _best(best, cluster),
             _memory(best, cluster, plan["same_layout"]), _time(best),
             _training(plan["training"], cluster, best["gpus"]), _inference(plan["inference"], plan["model"]["T"]),
             _search(plan["search"]),
             _assumed(plan["assumptions"], cluster, plan["model"]["n_expert"] > 0)]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _model(model):
    experts = f", {model['n_expert']} experts, {model['n_expert_active']} for a token" if model["n_expert"] else ""
    return [f"{model['name']}{EXAMPLE.get(model['name'], '')}: {model['n_layer']} layers, {model['n_embd']:,} wide, "
            f"{model['n_head']} heads, {model['n_kv_head']} of keys and values{experts}", *table([
                ["  parameters", f"{model['parameters']:,}"],
                ["  a token meets", f"{model['active_parameters']:,}"],
                ["  FLOPs per token, 6 N", f"{model['flops_per_token_6N']:.4g}", "forward, backward; N what it meets"],
                [f"  with attention, T = {model['T']:,}", f"{model['flops_per_token']:.4g}", "dense, without tables"],
                ["  with full recomputation", f"{model['flops_per_token_full_recomputation']:.4g}"],
                ["  the whole training", f"{model['training_flops']:.4g}", "FLOPs"]])]


def compute_optimal(optimal: dict) -> list[str]:
    """The lines about what some FLOPs train best."""
    refit, printed = optimal["refit"], optimal["printed"]
    return [f"compute-optimal for {optimal['flops']:.3g} FLOPs, if dense: {number(refit['parameters'])} parameters "
            f"on {number(refit['tokens'])} tokens",
            f"  (with the constants printed by Hoffmann et al., rounded too far: {number(printed['parameters'])} on "
            f"{number(printed['tokens'])})",
            f"  in steps of {number(optimal['batch_tokens'])} tokens (0.292 C^0.3271 for C FLOPs, DeepSeek LLM, "
            "arXiv:2401.02954)"]


def _best(best, cluster):
    idle = "" if best["gpus"] == cluster["gpus"] else f", which uses {best['gpus']:,} of them"
    return [f"the best layout of {cluster['gpus']:,} {cluster['gpu']}: {layout_name(best['layout'])}{idle}",
            f"  a step of {best['batch_tokens']:,} tokens, {best['batch_texts']:,} texts, {best['micro_batches']:,} "
            f"micro-batches one after the other, takes {duration(best['step_seconds'])}",
            *([] if best["batch_given"] else ["  (this batch was chosen, near to 0.292 C^0.3271 tokens; --batch-tokens "
                                              "sets another)"]),
            f"  {best['tokens_per_second']:,.0f} tokens/s, MFU {best['mfu']:.1%}, HFU {best['hfu']:.1%} of "
            f"{cluster['peak'] / 1e12:,.0f} TFLOP/s"]


def _memory(best, cluster, same_layout):
    total, limit = best["memory_bytes"], cluster["usable_bytes"]
    rows = [["  recompute", *(f"ZeRO {zero}" for zero in range(4))]]
    for recompute in dict.fromkeys(row["recompute"] for row in same_layout):
        rows.append([f"  {recompute}", *(f"{gigabytes(row['bytes'])}{'' if row['fits'] else ', does not fit'}"
                                         for row in same_layout if row["recompute"] == recompute)])
    return [f"memory of the fullest GPU: {gigabytes(total)} of {gigabytes(limit)}",
            *table([f"  {part}", gigabytes(size), f"{size / total:.0%}"] for part, size in best["memory"].items()),
            "  the same layout with other ZeRO stages and recomputation:", *table(rows)]


def _time(best):
    rows = [[f"  {part}", duration(seconds), f"{seconds / best['step_seconds']:.1%}",
             gigabytes(best["sent"][part]) if best["sent"].get(part) else ""]
            for part, seconds in best["seconds"].items() if seconds or best["sent"].get(part)]
    return ["time of a step, and what a GPU sends in it:", *table(rows)]


def _training(training, cluster, gpus):
    cost = f", {training['cost']:,.0f} at {training['price']:g} a GPU-hour" if "cost" in training else ""
    held = f" of all {cluster['gpus']:,} GPUs" if gpus < cluster["gpus"] else ""
    return [f"training on {number(training['tokens'])} tokens: {training['steps']:,} steps, "
            f"{duration(training['seconds'])}, {number(training['gpu_hours'])} GPU-hours, "
            f"{energy(training['energy_kwh'])}{held}{cost}"]


def _inference(inference, T):
    return [f"generating, in 16 bits: weights {gigabytes(inference['weight_bytes'])}; keys and values "
            f"{inference['kv_cache_bytes_per_token']:,} bytes a token, {gigabytes(inference['kv_cache_bytes'])} for "
            f"{T:,}; GPUs: at least {inference['gpus_at_least']:,}"]


def _search(found):
    return [f"{found['tried']:,} layouts tried: {found['fitting']:,} fit, {found['too_large']:,} do not, "
            f"{found['batch_unsplit']:,} cannot split the batch" + (
                "; the best of other splits:" if found["rejected"] else ""),
            *table([f"  {layout_name(row['layout'])}", row["reason"]] for row in found["rejected"])]


def _assumed(assumptions, cluster, mixture):
    experts = ["  experts: evenly loaded, their products as efficient as dense ones, none of their traffic hidden"]
    return ["assumed:", *table([f"  {name}", f"{value:g}", ASSUMED[name]] for name, value in assumptions.items()),
            *(experts if mixture else []),
            "  energy: of all GPUs, idle ones too, at their full power however busy they are",
            f"  {cluster['gpu']}: {cluster['peak'] / 1e12:,.0f} TFLOP/s in 16 bits, {cluster['reached']:.0%} at best; "
            f"{cluster['memory'] / 1e9:,.0f} GB at {cluster['bandwidth'] / 1e12:.2f} TB/s",
            f"    NVLink {cluster['nvlink'] / 1e9:,.0f} GB/s, network {cluster['network'] / 1e9:,.0f} GB/s, one way; "
            f"{cluster['watts']:g} W"]


def table(rows) -> list[str]:
    """Aligned lines; rows may be shorter than the longest."""
    rows = [list(row) for row in rows]
    width = max(map(len, rows), default=0)
    rows = [row + [""] * (width - len(row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("min", 60), ("s", 1),
                         ("ms", 1e-3)):
        if seconds >= length * (1 if unit in ("s", "ms") else 2):
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def number(count: float) -> str:
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{count / scale:,.4g} {unit}"
    return f"{count:,.0f}" if count >= 1000 else f"{count:.4g}"


def energy(kwh: float) -> str:
    for unit, size in (("GWh", 1e6), ("MWh", 1e3)):
        if kwh >= size:
            return f"{kwh / size:,.3g} {unit}"
    return f"{kwh:.3g} kWh"
