"""The picture of the ladders: a panel an operation, a bar a rung, and the line of what the machine allows."""

from .machine import limit
from .tables import LIMIT_NAMES, dates, machine_name, rate


def ladders(result, path):
    """Draws the ladders of a result into a file. Returns False where there are none, or no matplotlib."""
    rows = result["sections"].get("ops", {}).get("ladders")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if not rows:
        return False
    limits = result["sections"]["ops"]["limits"]
    names = list(dict.fromkeys(row["ladder"] for row in rows))
    figure = Figure(figsize=(11, 2.6 * ((len(names) + 1) // 2)), layout="constrained")
    panels = figure.subplots((len(names) + 1) // 2, 2, squeeze=False).flat
    for panel, name in zip(panels, names, strict=False):
        rungs = [row for row in rows if row["ladder"] == name]
        speeds = [rate(row, row["ours"]) for row in rungs]
        bars = panel.barh([row["rung"] for row in rungs], [speed for speed, _ in speeds], color="#4878a8")
        panel.bar_label(bars, fmt="%.3g", padding=3)
        line = limit(limits, rungs[0]["limit"])
        panel.axvline(line, color="#c03028", linestyle="--")
        panel.annotate(f"{LIMIT_NAMES[rungs[0]['limit']]} {line:.0f}", (line, 1), xycoords=("data", "axes fraction"),
                       ha="right", va="bottom", color="#c03028", fontsize=9)
        panel.set_xlim(0, 1.12 * max(line, *(speed for speed, _ in speeds)))
        panel.set_xlabel(speeds[0][1])
        panel.set_title(rungs[0]["work"], fontsize=10, loc="left")
        panel.invert_yaxis()
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(panels):
        panel.set_visible(False)
    title = f"Every rung of every ladder, {machine_name(result)}, {result['threads']} threads, {dates(result)}"
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)
    return True
