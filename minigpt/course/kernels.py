"""Holds what the emulator counted in a call of a student's kernels against what a good kernel needs.

That nothing was wrong, no race, nothing out of bounds, is not asked here: a call in which the emulator finds something
fails by itself (see native.py). Nor are the results: that is what other tests of the same task are for.
"""

from .process import Failed

SECTOR = 32                               # bytes that global memory moves at a time
ROOM = 1.1                                # times what is needed, for those who do it a little otherwise
SHOWN = 4                                 # lines of the student's file


def counted(adapters, name, /, **arguments):
    """Calls adapters.<name> -> {"kernels": [...], "lines": [...]}, dictionaries with what the emulator counted."""
    getattr(adapters, name)(**arguments)
    return adapters.seen


def moves(adapters, name, needed, what, /, **arguments):
    """Failed where global memory had to move much more than `needed` bytes, which are `what`."""
    lines = [line for line in counted(adapters, name, **arguments)["lines"] if line["space"] == "global"]
    moved = SECTOR * sum(line["sectors"] for line in lines)
    if moved > ROOM * needed:
        lines.sort(key=lambda line: -line["sectors"])
        raise Failed(f"{name}: global memory moved {moved:,} bytes, {needed:,} are enough: {what}. Of these\n"
                     + "\n".join(map(traffic, lines[:SHOWN])))
    if not lines:
        raise Failed(f"{name}: no kernel touched global memory")


def traffic(line):
    """A line of the student's file in words: what it moved, and why it is so much."""
    text = f"  {line['place']} {line['kind']}s {SECTOR * line['sectors']:,}"
    if line["sectors"] >= 2 * line["ideal"]:
        return f"{text}, for {line['bytes']:,} that its threads ask for: neighbours should use neighbouring addresses"
    if line["lanes"] <= 4 * line["requests"]:
        return f"{text}, by {line['lanes'] / line['requests']:.3g} of a warp's 32 threads at a time"
    return text


def no_bank_conflicts(adapters, name, /, **arguments):
    """Failed where lanes of a warp wait for each other at the banks of shared memory."""
    lines = [line for line in counted(adapters, name, **arguments)["lines"] if line["conflicts"]]
    if lines:
        worst = max(lines, key=lambda line: line["conflicts"])
        raise Failed(f"{name}: {worst['place']}: lanes of a warp waited {worst['conflicts']:,} turns at this "
                     f"{worst['kind']} of shared memory, because several wanted different words of one of its 32 banks")


def registers_only(adapters, name, /, **arguments):
    """Failed where a kernel uses shared memory or a barrier."""
    for kernel in counted(adapters, name, **arguments)["kernels"]:
        if used := kernel["static_bytes"] + kernel["shared_bytes"]:
            raise Failed(f"{name}: {kernel['name']} has {used:,} bytes of shared memory a block, must have none")
        if kernel["barriers"]:
            raise Failed(f"{name}: {kernel['name']} has barriers, must have none")
