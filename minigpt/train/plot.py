"""The picture of a training run: loss against step, for training and validation."""

import math

from ..files.atomic import atomic_write


def plot_losses(path, runs, vocab_size):
    """Draws the loss curves of `runs`, {label: log_history}, into the PNG file `path`, with the loss of a model that
    guesses (ln V, all tokens equally likely) as a dashed line. Returns False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    axes.axhline(math.log(vocab_size), color="0.6", linestyle="--", linewidth=1,
                 label=f"guessing: ln {vocab_size} = {math.log(vocab_size):.2f}")
    for number, (label, history) in enumerate(runs.items()):
        colour, prefix = f"C{number}", f"{label}: " if len(runs) > 1 else ""
        for key, name, style in (("loss", "training", dict(alpha=0.55)), ("eval_loss", "validation", {})):
            points = [(entry["step"], entry[key]) for entry in history if key in entry]
            if points:
                marker = "o" if name == "validation" or len(points) == 1 else None  # one point alone makes no line
                axes.plot(*zip(*points, strict=True), marker=marker, color=colour, linewidth=1.4, markersize=4,
                          label=f"{prefix}{name}, at the end {points[-1][1]:.2f}", **style)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
    return True
