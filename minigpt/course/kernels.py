"""Holds what the emulator counted in the latest call of a student's kernels against what good kernels need.

    agrees(adapters, "layernorm_forward", **given)        # first of all the results are right
    moves(adapters, 4 * x.nbytes, "x, weight and bias read once, y written once")

That nothing was wrong, no race, nothing out of bounds, is not asked here: a call in which the emulator finds something
fails by itself (see native.py).
"""

from .process import Failed

SECTOR = 32                               # bytes that global memory moves at a time
ROOM = 1.1                                # times what is needed, for those who do it a little otherwise
SHOWN = 4                                 # lines of the student's file


def moves(adapters, needed, what):
    """Failed where global memory had to move much more than `needed` bytes, which are `what`."""
    lines = [line for line in adapters.seen["lines"] if line["space"] == "global"]
    lines.sort(key=lambda line: -line["sectors"])
    moved = SECTOR * sum(line["sectors"] for line in lines)
    if moved > ROOM * needed:
        raise Failed(f"{lines[0]['kernel']}: global memory moved {moved:,} bytes, {needed:,} are enough: {what}. "
                     "Of these\n" + "\n".join(map(traffic, lines[:SHOWN])))


def traffic(line):
    """A line of the student's file in words: what it moved, and why it is so much."""
    text = f"  {line['place']} {line['kind']}s {SECTOR * line['sectors']:,}"
    if line["sectors"] >= 2 * line["ideal"]:
        return f"{text}, for {line['bytes']:,} that its threads ask for: neighbours should use neighbouring addresses"
    if line["lanes"] <= 4 * line["requests"]:
        return f"{text}, by {line['lanes'] / line['requests']:.3g} of a warp's 32 threads at a time"
    return text


def no_bank_conflicts(adapters):
    """Failed where lanes of a warp wait for each other at the banks of shared memory."""
    if lines := [line for line in adapters.seen["lines"] if line["conflicts"]]:
        worst = max(lines, key=lambda line: line["conflicts"])
        raise Failed(f"{worst['kernel']}: in {worst['place']} lanes of a warp waited {worst['conflicts']:,} turns at a "
                     f"{worst['kind']} of shared memory: several wanted different words of one of its 32 banks")


def registers_only(adapters):
    """Failed where a kernel uses shared memory or a barrier."""
    for kernel in adapters.seen["kernels"]:
        if used := kernel["static_bytes"] + kernel["shared_bytes"]:
            raise Failed(f"{kernel['name']}: has {used:,} bytes of shared memory a block, must have none")
        if kernel["barriers"]:
            raise Failed(f"{kernel['name']}: has a barrier, must have none")
