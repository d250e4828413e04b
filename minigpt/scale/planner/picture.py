"""The picture of a plan: where the memory of a GPU and the time of a step go."""

from __future__ import annotations

from pathlib import Path

from ...files.atomic import atomic_write
from .plan import layout_name
from .report import duration, gigabytes

KINDS = ".png", ".svg", ".pdf"


def check_path(path):
    """ValueError for a path that no picture can be written to."""
    path = Path(path)
    if path.suffix.lower() not in KINDS:
        raise ValueError(f"plan: --picture is {str(path)!r}, must end in {', '.join(KINDS)}")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"plan: --picture is {str(path)!r}, must be a file in a folder that exists")


def draw(plan: dict, path):
    """Draws the plan into the file `path`, of one of KINDS by its name. ImportError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plan: --picture needs matplotlib, which is not installed: pip install matplotlib") from None
    best, cluster = plan["best"], plan["cluster"]
    figure = Figure(figsize=(9, 5.2), dpi=130, layout="constrained")
    upper, lower = figure.subplots(2, 1)
    _bar(upper, {part: size / 1e9 for part, size in best["memory"].items()},
         {part: gigabytes(size) for part, size in best["memory"].items()})
    upper.axvline(cluster["usable_bytes"] / 1e9, color="#c03028", linestyle="--")
    upper.set_title(f"memory of the fullest GPU: {gigabytes(best['memory_bytes'])} of "
                    f"{gigabytes(cluster['usable_bytes'])} (dashed)", fontsize=10, loc="left")
    upper.set_xlabel("GB")
    _bar(lower, best["seconds"], {part: duration(seconds) for part, seconds in best["seconds"].items()})
    lower.set_title(f"time of a step: {duration(best['step_seconds'])}, MFU {best['mfu']:.1%}", fontsize=10, loc="left")
    lower.set_xlabel("s")
    figure.suptitle(f"{plan['model']['name']} on {cluster['gpus']:,} {cluster['gpu']}: {layout_name(best['layout'])}",
                    fontsize=10)
    with atomic_write(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:].lower())


def _bar(axes, parts, labels):
    """One bar of parts, which the legend names."""
    left = 0.0
    for number, (part, value) in enumerate(parts.items()):
        if value > 0:
            axes.barh([0], [value], left=left, color=f"C{number}", label=f"{part}: {labels[part]}")
            left += value
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.25))
