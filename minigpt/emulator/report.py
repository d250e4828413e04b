"""What the emulator saw, in words and numbers: print(report).

`findings` are mistakes, each with the place in the source, the thread that made it, and what usually mends it. `lines`
says for every line of a kernel that touches memory how much it moved and how well: a GPU fetches global memory in
sectors of 32 bytes, so that lines whose neighbouring threads read neighbouring numbers touch few of them; shared memory
has 32 banks, each of which serves one 4-byte word at a time.
"""

import functools
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

WASTEFUL = 2                              # times the sectors, or turns, that a line needs: then it is worth a sentence


@dataclass
class Finding:
    """One mistake. `kind` names it in a word ("race", "out of bounds" ...), `text` says all."""
    kind: str
    kernel: str
    text: str
    places: list[str]                     # "file:line"
    times: int

    def __str__(self):
        return self.text


@dataclass
class Line:
    """What one line of a kernel did to one kind of memory."""
    kernel: str
    place: str                            # "file:line"
    space: str                            # global or shared
    kind: str                             # read, write or atomic
    requests: int                         # by whole warps
    bytes: int                            # as many as threads asked for
    sectors: int                          # of 32 bytes touched, for global memory ...
    ideal: int                            # ... and had the bytes lain side by side
    conflicts: int                        # for shared memory: turns that the banks' conflicts cost


@dataclass
class Kernel:
    name: str
    launches: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    barriers: int
    flops: int
