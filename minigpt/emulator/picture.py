"""Draws a trace: which elements of each array the warps touched, and when.

One panel an array of global memory: across go the accesses of warps in their order, upwards the elements of the array;
a point is an element that a lane touched, its colour the block. Tiles show as slanted bands, a row that every block
reads again as a repeated one, scattered accesses as vertical lines. Shared memory becomes a map of its 32 banks: how
many lanes used each bank in each access; bright spots are conflicts. matplotlib is needed only here.
"""

import os
from collections import defaultdict

import numpy as np

BANKS = 32


def _matplotlib():
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a picture of a trace needs matplotlib: pip install matplotlib") from None
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def units(trace):
    """{array: the bytes of the smallest access to it}"""
    found = {}
    for access in trace:
        found[access["array"]] = min(access["bytes"], found.get(access["array"], 16))
    return found


def points(trace):
    """{array: (time, element, block, write)} of all lanes' accesses to global memory, four arrays of the same length:
    the number of the access in the trace, the index in units of the smallest access to the array, the number of its
    block among those seen, and whether it was written."""
    blocks, found, unit = {}, {}, units(trace)
    for time, access in enumerate(trace):
        if access["space"] != "global":
            continue
        block = blocks.setdefault((access["kernel"], *access["block"]), len(blocks))
        rows = found.setdefault(access["array"], [])
        bytes, write = unit[access["array"]], access["kind"] != "read"
        rows += [(time, offset // bytes, block, write) for offset in access["offsets"]]
    return {array: tuple(np.array(rows).T) for array, rows in found.items()}


def banks(trace):
    """(accesses, 32): how many different words of each bank the lanes of each access to shared memory wanted at once:
    all lanes, or for 8 bytes a lane the half of them, for 16 the quarter, that has to wait longest."""
    rows = []
    for access in trace:
        if access["space"] != "shared":
            continue
        words, together = defaultdict(set), max(1, -(-access["bytes"] // 4))
        for lane, offset in zip(access["lanes"], access["offsets"], strict=True):
            words[lane * together // BANKS] |= {offset // 4 + k for k in range(together)}
        rows.append(np.max([np.bincount([word % BANKS for word in of], minlength=BANKS) for of in words.values()], 0))
    return np.array(rows).reshape(-1, BANKS)


def _panels(figure, trace):
    """The figure's axes; for each array of global memory its points, the axis having the range that they need; and the
    image of shared memory, or None."""
    found, shared, unit = points(trace), banks(trace), units(trace)
    if not trace:
        raise ValueError("the report has no trace: watch(trace=2000) keeps the first 2000 accesses of warps")
    count = len(found) + bool(len(shared))
    figure.set_size_inches(9, 1 + 2 * count)
    axes = figure.subplots(count, 1, squeeze=False)[:, 0]
    for axis, (array, (_, element, _, _)) in zip(axes, found.items(), strict=False):
        axis.set(xlim=(-1, len(trace)), ylim=(-1, element.max() + 1),
                 ylabel=f"{array}\nin pieces of {unit[array]} bytes")
    image = None
    if len(shared):
        image = axes[-1].imshow(shared.T, aspect="auto", origin="lower", cmap="magma", interpolation="nearest",
                                vmin=0, vmax=max(4, shared.max()))
        axes[-1].set(ylabel="shared memory: bank", xlabel="its accesses, in their order")
        figure.colorbar(image, ax=axes[-1], label="different words\n(0: unused, 1 is best)")
    if found:
        axes[len(found) - 1].set_xlabel("accesses by warps, in their order (colour: block; ring: written)")
    return axes, found, image


def _draw(axis, time, element, block, write, blocks):
    colour = {"cmap": "turbo", "vmin": 0, "vmax": max(1, blocks - 1)}
    for chosen, style in ((write == 0, {"s": 3}), (write != 0, {"s": 9, "marker": "$\\circ$"})):
        axis.scatter(time[chosen], element[chosen], c=block[chosen], linewidths=0.3, **style, **colour)


def _blocks(found):
    """How many blocks the points of all arrays belong to: a block has one colour, whatever is drawn of it."""
    return max((1 + block.max() for _, _, block, _ in found.values()), default=1)


def _title(trace, what, cut):
    return f"{trace[0]['kernel']}: {what}" + "\nthe trace is full: a larger watch(trace=...) shows more" * cut


def _writable(name, path, *endings):
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name}: path is {path!r}, must be the name of a file")
    if not str(path).lower().endswith(endings):
        raise ValueError(f"{name}: path is {str(path)!r}, must end with {', '.join(endings)}")


def picture(trace, path, cut=False):
    """Writes the picture of a trace; the end of the path says the format (png, svg, pdf). `cut`: whether the trace
    is as long as it may be, and the kernel may have done more."""
    _writable("picture", path, ".png", ".svg", ".pdf")
    figure = _matplotlib()
    axes, found, _ = _panels(figure, trace)
    for axis, columns in zip(axes, found.values(), strict=False):
        _draw(axis, *columns, _blocks(found))
    figure.suptitle(_title(trace, f"{len(trace):,} accesses by warps", cut))
    figure.savefig(path, dpi=120)


def animation(trace, path, frames=40, cut=False):
    """Writes a GIF in which the accesses appear in their order, `frames` pictures long."""
    _writable("animation", path, ".gif")
    if isinstance(frames, bool) or not isinstance(frames, (int, np.integer)) or not 1 <= frames <= 1000:
        raise ValueError(f"animation: frames is {frames!r}, must be an integer from 1 to 1000")
    figure = _matplotlib()
    from matplotlib.animation import FuncAnimation, PillowWriter
    axes, found, image = _panels(figure, trace)
    frames, blocks, shared = min(frames, len(trace)), _blocks(found), banks(trace).T
    seen = np.cumsum([access["space"] == "shared" for access in trace])     # accesses to shared memory until then

    def draw(frame):
        begin, end = (len(trace) * k // frames for k in (frame, frame + 1))
        for axis, columns in zip(axes, found.values(), strict=False):
            now = (columns[0] >= begin) & (columns[0] < end)
            if now.any():
                _draw(axis, *(column[now] for column in columns), blocks)
        if image is not None:
            image.set_data(np.where(np.arange(shared.shape[1]) < seen[end - 1], shared, 0))
        figure.suptitle(_title(trace, f"accesses {begin:,} to {end - 1:,} of {len(trace):,}", cut))

    FuncAnimation(figure, draw, frames=frames, init_func=lambda: None).save(path, PillowWriter(fps=8))
