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

from .flops import COUNTED

LEGEND = """  A warp is 32 threads that go together. Each row is a line of a kernel, and one kind of access there.
  barriers   how many times a whole block passed one, each block counted
  warps      how many times a warp came by
  bytes      what the threads asked for
  sectors    pieces of 32 bytes that global memory had to move for it; ideal: as few as can hold these bytes
  conflicts  turns that threads lost because several wanted different words of one of the 32 banks of shared memory
  waste      how many times the traffic, or the turns, that it would take at best
  FLOPs      additions, subtractions, multiplications and divisions of floats, and twice each fmaf()"""
NO_KERNEL = """No kernel was launched.
  Only kernels of compile()d files and of ops.load("emulated") are seen, and only those that this thread launches."""
# Places that are not in the author's files: the emulator's own, the compiler's headers, and what has no line.
NOT_THE_AUTHORS = re.compile(r"/csrc/emulator/|/include/c\+\+/|/lib(?:64)?/(?:gcc|clang)/|^/usr/include/|^\?\?")
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

    def is_same(self, other):
        """One missing barrier is a race seen from both sides: this thread reads what that one wrote, and writes what
        it read."""
        return (self.kind == other.kind == "race" and self.kernel == other.kernel
                and set(self.places) == set(other.places))


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
    lanes: int = 0                        # threads that took part, summed over the warps
    gaps: int = 0                         # warps whose threads lie side by side, but for idle ones between them

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
    static_bytes: int = 0                 # __shared__ arrays
    cut_short: bool = False               # a mistake ended it, or Ctrl-C: the numbers are those until then
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
    trace_is_full: bool = False                               # it is as long as asked: there may have been more
    notes: list[str] = field(default_factory=list)            # on how it was watched: what was asked and did not happen

    def add(self, seen: dict):
        """Takes in what the runtime says of one call: the dictionary of its JSON."""
        seen = with_places(seen)
        for f in (_finding(f, seen) for f in seen["findings"]):
            same = next((old for old in self.findings if f.is_same(old)), None)
            if same is None:
                self.findings.append(f)
            else:
                same.times += f.times
        for k in seen.get("kernels", ()):
            kernel = self._same(self.kernels, Kernel(k["name"]), ("name",))
            kernel.grid, kernel.block, kernel.shared_bytes = tuple(k["grid"]), tuple(k["block"]), k["shared_bytes"]
            kernel.static_bytes = max(kernel.static_bytes, k["static_bytes"])
            kernel.cut_short |= bool(k["cut_short"])
            for name in ("launches", "barriers", "flops", "tensor_flops"):
                setattr(kernel, name, getattr(kernel, name) + k[name])
        key = ("kernel", "place", "space", "kind")
        for one in seen.get("lines", ()):
            line = self._same(self.lines, Line(*(one[name] for name in key)), key)
            for name in ("requests", "bytes", "sectors", "ideal", "conflicts", "lanes", "gaps"):
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

    def picture(self, path):
        """Draws the trace: which elements of each array the warps touched, and when, and the banks of shared memory. A
        file in the format that its name ends with; needs watch(trace=...) and matplotlib."""
        from .picture import picture
        picture(self.trace, path, self.trace_is_full)

    def animation(self, path, frames=40):
        """The same as a GIF, in which the accesses appear in their order. Needs matplotlib and pillow."""
        from .picture import animation
        animation(self.trace, path, frames, self.trace_is_full)

    @property
    def advice(self) -> list[str]:
        """Sentences about lines that are right, but cost more than they must."""
        return [_advice(line) for line in sorted(self.lines, key=lambda line: -line.waste) if line.waste >= WASTEFUL]

    def __str__(self):
        blocks = ["\n".join(["What is wrong", *(_bullet(f) for f in self.findings)]) if self.findings
                  else "Nothing wrong was found." if self.kernels else NO_KERNEL]
        blocks += [*self.notes, *(self._kernel(kernel) for kernel in self.kernels)]
        if any(line.kernel == kernel.name for kernel in self.kernels for line in self.lines):
            blocks.append(LEGEND)
        if self.advice:
            blocks += ["\n".join(["What is slow", *(_bullet(sentence) for sentence in self.advice)])]
        return "\n\n".join(blocks)

    def _kernel(self, kernel):
        grid, block = (" x ".join(str(n) for n in sizes) for sizes in (kernel.grid, kernel.block))
        barriers = f"{kernel.barriers} barrier{'s' * (kernel.barriers != 1)}"
        title = (f"{kernel.name}: {kernel.launches} launch{'es' * (kernel.launches != 1)}, grid {grid}, block {block}, "
                 f"{kernel.static_bytes + kernel.shared_bytes:,} bytes of shared memory a block, {barriers}, "
                 + (f"{kernel.flops:,} FLOPs" if COUNTED else "FLOPs not counted on this machine")
                 + (f" and {kernel.tensor_flops:,} on tensor cores" if kernel.tensor_flops else "")
                 + "\n  It was ended before it was done: these are the counts until then." * kernel.cut_short)
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
    return *_file_and_line(line.place), line.space, line.kind


def _barrier(f, seen):
    """Where a barrier is missing in a block that races, and which is enough: all that was seen at these two lines
    counts, not only the first."""
    across = any(other.get("across_warps") for other in seen["findings"] if set(other["places"]) == set(f["places"]))
    kinds = ("barrier",) if across else ("barrier", "warp barrier")
    first, last = sorted(map(_file_and_line, f["places"]))
    between = any(first < _file_and_line(site["place"]) < last for site in seen.get("sites", ())
                  if site["kind"] in kinds and site["times"]) and first[0] == last[0]
    needed = "__syncthreads()" if across else "__syncwarp() or __syncthreads()"
    return ((f"A barrier stands between these two lines, so they most likely meet in two rounds of a loop: put "
             f"{needed} at the loop's end too, before the next round writes where others still read." if between else
             f"Put {needed} between the two, or let threads touch different elements.")
            + ("" if across else " (Lanes of one warp do not run in step, and shuffles do not order memory.)"))


def _file_and_line(place):
    file, _, line = place.rpartition(":")
    return file, int(line) if line.isdigit() else 0


def _finding(f, seen):
    places = tuple(place for place in f["places"] if place)
    text = f"{f['kernel']}: {f['words'].format(*f['places'])}"
    if f["thread"] is not None:
        text += f" (thread {tuple(f['thread'])} of block {tuple(f['block'])}"
        text += f", and {_times(f['times'] - 1)} in these lines)" if f["times"] > 1 else ")"
    mend = f["mend"].replace("{barrier}", _barrier(f, seen)) if "{barrier}" in f["mend"] else f["mend"]
    return Finding(f["kind"], f["kernel"], f"{text}\n{mend}".strip(), places, f["times"])


def _times(n):
    return "once more" if n == 1 else f"{n:,} times more"


def _advice(line):
    if line.gaps * 2 > line.requests:
        return (f"{line.place}: only {line.lanes / line.requests:.3g} of a warp's 32 threads take part in this "
                f"{line.kind}, with idle ones between them: {line.waste:.1f} times the traffic: sectors move whole.\n"
                "Threads of a warp that go different ways (if (i % 2)) wait for each other. Give the work to threads "
                "that are neighbours: whole warps that are busy, and whole warps that are not.")
    if line.space == "global":
        return (f"{line.place}: a warp's {line.kind} touches {line.sectors / line.requests:.3g} sectors of 32 bytes "
                f"where {line.ideal / line.requests:.3g} hold what it asks for: {line.waste:.1f} times the traffic.\n"
                "Neighbouring threads (threadIdx.x) should use neighbouring addresses: that is what coalesced means.")
    return (f"{line.place}: a warp's {line.kind} of shared memory takes {line.waste:.1f} turns instead of 1, because "
            "several threads want different words of one bank.\n"
            "Neighbouring threads should use neighbouring words, since banks repeat every 32. Where a matrix is read "
            "by columns, pad its rows by a word ([32][33]) or swizzle the columns.")


def _bullet(text):
    return "  - " + str(text).replace("\n", "\n    ")


# ---------------------------------------------------------------------------------------------------------------
# places in the source


def with_places(seen):
    """The same with "file:line" for every place, of which some are addresses in a library."""
    wanted = defaultdict(set)
    _each_place(seen, lambda place: wanted[place["library"]].update(place["offsets"]) if "library" in place else None)
    lines = {library: _look_up(library, tuple(sorted(offsets))) for library, offsets in wanted.items()}

    def named(place):
        if "library" not in place:
            return f"{_short(place['file'])}:{place['line']}"
        callers = [line for offset in place["offsets"] for line in lines[place["library"]][offset]]
        file, _, line = next((c for c in callers if not NOT_THE_AUTHORS.search(c)), callers[0]).rpartition(":")
        return f"{_short(file)}:{line}" if file else line

    return _each_place(seen, named)


def _each_place(x, change):
    if isinstance(x, dict):
        if x.keys() in ({"library", "offsets"}, {"file", "line"}):
            return change(x)
        return {name: _each_place(y, change) for name, y in x.items()}
    return [_each_place(y, change) for y in x] if isinstance(x, list) else x


@cache
def _look_up(library, offsets):
    """{offset: ["file:line", ...]} by addr2line, from the line table that the compiler left: where a function was
    inlined, its line comes before that of the call."""
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    if not tool:
        return {offset: ["a line that cannot be named without addr2line (binutils)"] for offset in offsets}
    done = subprocess.run([tool, "-i", "-a", "-e", library, *map(hex, offsets)], capture_output=True, text=True)
    blocks = re.split(r"^0x[0-9a-f]+\n", done.stdout, flags=re.MULTILINE)[1:]
    return {offset: re.sub(r" \(discriminator \d+\)$", "", block, flags=re.MULTILINE).splitlines()
            for offset, block in zip(offsets, blocks, strict=True)}


def _short(path):
    """A path as one reads it: from here if it is below, else the file's name."""
    relative = os.path.relpath(path)
    return os.path.basename(path) if relative.startswith("..") else relative
