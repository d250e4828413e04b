"""What the emulator saw, in words and numbers: print(report).

`findings` are mistakes, each with the place in the source, the thread that made it, and what usually mends it. `lines`
says for every line of a kernel that touches memory how much it moved and how well: a GPU fetches global memory in
sectors of 32 bytes, so a line whose neighbouring threads read neighbouring numbers touches few of them; shared memory
has 32 banks, each of which serves one 4-byte word at a time. `advice` puts the worst of these numbers into sentences.
"""

import os
import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache

WASTEFUL = 2                              # times what a line needs: then it is worth a sentence


class KernelError(RuntimeError):
    """A kernel did something wrong: the message says what, where, which thread, and what usually mends it. `findings`
    has all that was found."""

    def __init__(self, findings):
        more = f"\n({len(findings) - 1} more findings)" if len(findings) > 1 else ""
        super().__init__(f"{findings[0]}{more}")
        self.findings = findings


@dataclass
class Finding:
    """One mistake, however many threads made it. `kind` names it in a word or two: race, out of bounds ..."""
    kind: str
    kernel: str
    text: str
    places: tuple[str, ...]               # "file:line"
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
    requests: int = 0                     # by whole warps
    bytes: int = 0                        # as many as the threads asked for
    sectors: int = 0                      # of 32 bytes, touched in global memory ...
    ideal: int = 0                        # ... and how many it would be if the bytes lay side by side
    conflicts: int = 0                    # turns that threads waited for each other at the banks of shared memory

    @property
    def waste(self):
        """How many times too much it takes: sectors, or turns at the banks."""
        if self.space == "global":
            return self.sectors / max(1, self.ideal)
        return 1 + self.conflicts / max(1, self.requests)


@dataclass
class Kernel:
    """One kernel; the sizes are those of its latest launch, the numbers are sums over all launches."""
    name: str
    grid: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    shared_bytes: int = 0                 # dynamic: the third number of the launch
    launches: int = 0
    barriers: int = 0                     # passed, by whole blocks
    flops: int = 0                        # additions, multiplications ... of floats and doubles, one each; fmaf() two
    tensor_flops: int = 0                 # those of the tensor cores, which `flops` has not


@dataclass
class Report:
    findings: list[Finding] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    sites: set[str] = field(default_factory=set)              # "file:line" of every barrier and wait that was reached
    trace: list[dict] = field(default_factory=list)           # what warps touched, in order, where watch(trace=) asked

    def add(self, seen: dict):
        """Takes in what the runtime says of one call: the dictionary of its JSON."""
        seen = with_places(seen)
        for f in seen["findings"]:
            self.findings.append(_finding(f))
        for k in seen.get("kernels", ()):
            kernel = self._same(self.kernels, Kernel(k["name"]), ("name",))
            kernel.grid, kernel.block, kernel.shared_bytes = tuple(k["grid"]), tuple(k["block"]), k["shared_bytes"]
            for name in ("launches", "barriers", "flops", "tensor_flops"):
                setattr(kernel, name, getattr(kernel, name) + k[name])
        key = ("kernel", "place", "space", "kind")
        for one in seen.get("lines", ()):
            line = self._same(self.lines, Line(*(one[name] for name in key)), key)
            for name in ("requests", "bytes", "sectors", "ideal", "conflicts"):
                setattr(line, name, getattr(line, name) + one[name])
        self.sites |= {site["place"] for site in seen.get("sites", ())}
        self.trace += seen.get("trace", ())

    @staticmethod
    def _same(known, new, key):
        """The entry of `known` that agrees with `new` in the attributes `key`; `new`, put there, if there is none."""
        for old in known:
            if all(getattr(old, name) == getattr(new, name) for name in key):
                return old
        known.append(new)
        return new

    @property
    def advice(self) -> list[str]:
        """Sentences about lines that are right, but cost more than they must."""
        return [_advice(line) for line in sorted(self.lines, key=lambda line: -line.waste) if line.waste >= WASTEFUL]

    def __str__(self):
        blocks = [self._kernel(kernel) for kernel in self.kernels]
        blocks += ["\n".join(["What is wrong", *(_bullet(f) for f in self.findings)]) if self.findings
                   else "Nothing wrong was found."]
        if self.advice:
            blocks += ["\n".join(["What is slow", *(_bullet(sentence) for sentence in self.advice)])]
        return "\n\n".join(blocks)

    def _kernel(self, kernel):
        grid, block = (" x ".join(str(n) for n in sizes) for sizes in (kernel.grid, kernel.block))
        barriers = f"{kernel.barriers} barrier{'s' * (kernel.barriers != 1)}"
        title = (f"{kernel.name}: {kernel.launches} launch{'es' * (kernel.launches != 1)}, grid {grid}, block {block}, "
                 f"{kernel.shared_bytes} bytes of dynamic shared memory, {barriers}")
        rows = [("line", "memory", "", "warps", "bytes", "sectors", "ideal", "conflicts", "waste")]
        for line in sorted((line for line in self.lines if line.kernel == kernel.name), key=_where):
            of_global = line.space == "global"
            rows.append((line.place, line.space, line.kind, str(line.requests), str(line.bytes),
                         str(line.sectors) if of_global else "", str(line.ideal) if of_global else "",
                         "" if of_global else str(line.conflicts), f"{line.waste:.1f}x"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ("  ".join(cell.ljust(w) if i < 3 else cell.rjust(w)
                           for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)
        return "\n  ".join([title, *table])


def _where(line):
    """Sorts by file, line, memory and access."""
    file, _, number = line.place.rpartition(":")
    return file, int(number) if number.isdigit() else 0, line.space, line.kind


def _finding(f):
    places = tuple(place for place in f["places"] if place)
    text = f"{f['kernel']}: {f['words'].format(*f['places'])}"
    if f["thread"] is not None:
        text += f" (thread {tuple(f['thread'])} of block {tuple(f['block'])}"
        text += f", and {f['times'] - 1} more times)" if f["times"] > 1 else ")"
    return Finding(f["kind"], f["kernel"], f"{text}\n{f['mend']}".strip(), places, f["times"])


def _advice(line):
    if line.space == "global":
        return (f"{line.place}: a warp's {line.kind} touches {line.sectors / line.requests:.3g} sectors of 32 bytes "
                f"where {line.ideal / line.requests:.3g} hold what it asks for: {line.waste:.1f} times the traffic.\n"
                "Neighbouring threads (threadIdx.x) should use neighbouring addresses: that is what coalesced means.")
    return (f"{line.place}: a warp's {line.kind} of shared memory takes {line.waste:.1f} turns instead of 1, because "
            "several threads want different words of one bank.\n"
            "Banks repeat every 32 words: pad the rows by a word ([32][33]) or swizzle the columns.")


def _bullet(text):
    return "  - " + str(text).replace("\n", "\n    ")


# ---------------------------------------------------------------------------------------------------------------
# places in the source


def with_places(seen):
    """The same with "file:line" for every place, of which some are addresses in a library."""
    wanted = defaultdict(set)
    _each_place(seen, lambda place: wanted[place["library"]].add(place["offset"]) if "library" in place else None)
    lines = {library: _look_up(library, tuple(sorted(offsets))) for library, offsets in wanted.items()}

    def named(place):
        if "library" in place:
            return lines[place["library"]][place["offset"]]
        return f"{_short(place['file'])}:{place['line']}"

    return _each_place(seen, named)


def _each_place(x, change):
    if isinstance(x, dict):
        if x.keys() in ({"library", "offset"}, {"file", "line"}):
            return change(x)
        return {name: _each_place(y, change) for name, y in x.items()}
    return [_each_place(y, change) for y in x] if isinstance(x, list) else x


@cache
def _look_up(library, offsets):
    """{offset: "file:line"} by addr2line, from the line table that the compiler left."""
    unknown = dict.fromkeys(offsets, "a line that cannot be named without addr2line (binutils)")
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    if not tool:
        return unknown
    done = subprocess.run([tool, "-e", library, *map(hex, offsets)], capture_output=True, text=True)
    found = [re.sub(r" \(discriminator \d+\)$", "", line).rpartition(":") for line in done.stdout.splitlines()]
    return unknown | {offset: f"{_short(file)}:{line}" for offset, (file, _, line) in zip(offsets, found, strict=False)}


def _short(path):
    """A path as one reads it: from here if it is below, else the file's name."""
    relative = os.path.relpath(path)
    return os.path.basename(path) if relative.startswith("..") else relative
