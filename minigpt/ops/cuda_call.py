"""How an op of cuda_ops.py reaches its kernel: which rung, on which arrays, on which machine.

The files in csrc/cuda say all that is to know. A launcher's name is that of the op, with the rung's name behind it in
a ladder; the order of a ladder is that of the files' numbers; and where a rung does not take all dtypes and sizes, or
needs a newer GPU than others, a line of its header says so:

    // takes: bfloat16, float16; D in multiples of 16, up to 128; needs sm_80

A rung whose results may differ from run to run says "; not deterministic" before what it needs, and is never the
default. Nor is one that says "; on request": neither a GPU that is written down in the repository nor the emulator has
run it yet.

A `Call` hands arrays over. Kernels want addresses that are multiples of 16 and contiguous arrays (heads: any strides,
as long as the last is 1); what is otherwise is copied, and results are copied back to where the caller wants them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import emulator
from ..emulator import launchers
from ..emulator.build import sources
from .bfloat16 import dtype_name
from .cuda_arrays import device, fresh, owner, view

DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}              # the codes that launchers take
TAKES = re.compile(r"^// takes: ([\w, ]+?)(?:; D (?:in multiples of (\d+), )?up to (\d+))?"
                   r"(; not deterministic)?(; on request)?(?:; needs sm_(\w+))?$", re.MULTILINE)
RUNG = re.compile(r"(?:(?:forward|backward)_)?(\d+)_(\w+)")
ALIGNMENT = 16                                                    # bytes: the widest load of a thread


@dataclass(frozen=True)
class Rung:
    """One launcher: the op and the rung's name (None where there is no ladder), where it is, and what it takes."""
    op: str
    name: str | None
    path: Path
    signature: launchers.Signature
    dtypes: tuple[str, ...]
    D_multiple: int = 1
    D_most: int = 2**31
    deterministic: bool = True
    on_request: bool = False
    needs: str = "75"                                             # of the GPU: its compute capability times ten

    def takes(self, dtype, D):
        return dtype in self.dtypes and D <= self.D_most

    def runs_on(self, capability):
        """90a and the like are for that very machine; other code runs on later ones too."""
        return capability == int(self.needs[:-1]) if self.needs.endswith("a") else capability >= int(self.needs)


def find_rungs(ops):
    """{op: [Rung, ...]}, each ladder in its order, of all that csrc/cuda holds of `ops`."""
    found = {}
    for path in sorted((sources() / "cuda").glob("*/*.cu")):
        text = path.read_text(encoding="utf-8")
        takes, number = TAKES.search(text), RUNG.fullmatch(path.stem)
        dtypes, multiple, most, varies, on_request, needs = takes.groups() if takes else [None] * 6
        for launcher, signature in launchers.signatures(text, str(path))[0].items():
            op = next((op for op in ops if launcher == op or number and launcher == f"{op}_{number[2]}"), None)
            if op:
                taken = DTYPES if signature.parameters[0].name == "dtype" else ("float32",)
                rung = Rung(op, None if launcher == op else number[2], path, signature,
                            dtypes=tuple(dtypes.split(", ") if dtypes else taken), D_multiple=int(multiple or 1),
                            D_most=int(most or 2**31), deterministic=not varies, on_request=bool(on_request),
                            needs=needs or "75")
                found.setdefault(op, []).append((int(number[1]) if number else 0, rung))
    return {op: [rung for _, rung in sorted(rungs, key=lambda pair: pair[0])] for op, rungs in found.items()}


def choose(op, rungs, kernel, dtype, D=1):
    """The rung named `kernel`, or the last that takes such arrays and may be the default. TypeError or ValueError where
    none does."""
    suited = [rung for rung in rungs if rung.takes(dtype, D)
              and (rung.name == kernel or kernel is None and rung.deterministic and not rung.on_request)]
    if suited:
        return suited[-1]
    named = "" if kernel is None else f" {kernel!r}"
    dtypes = [name for name in DTYPES if any(name in r.dtypes for r in rungs if kernel in (None, r.name))]
    if dtype not in dtypes:
        raise TypeError(f"{op}: the arrays are {dtype}, must be {' or '.join(dtypes)} for the kernel{named}")
    raise ValueError(f"{op}: the head size is {D}, too large for the kernel{named}")


def plain(x):
    return x.flags.c_contiguous and x.ctypes.data % ALIGNMENT == 0


class Call:
    """One call of one op on one machine (Emulator below, or gpu.GPU)."""

    def __init__(self, machine, op):
        self.machine, self.op = machine, op
        self.like = None                  # new arrays are made like the first that was given
        self.late = []                    # (where the caller wants a result, where the kernel writes it)

    def views(self, *given):
        """The arguments, every array among them (and in tuples) as a NumPy array or a view."""
        return tuple(self._view(x) for x in given)

    def _view(self, x):
        if isinstance(x, (tuple, list)):
            return type(x)(self._view(y) for y in x)
        x = view(x)
        if not isinstance(x, np.ndarray):
            return x
        self.machine.refuse(self.op, x)
        if self.like is None and x.dtype.kind not in "iu":                        # not token ids
            self.like = x
        return x

    def read(self, x, dtype=None):
        """An array for the kernel to read. None stays None."""
        if x is None or plain(x) and x.dtype == (dtype or x.dtype):
            return x
        return self._copy(x, x.shape, dtype or x.dtype)

    def write(self, given, shape, dtype=None, make="empty"):
        """An array for the kernel to write, `given` where that will do."""
        dtype = np.dtype(dtype or self.like.dtype)
        if given is not None and plain(given) and given.dtype == dtype:
            return given
        return self._instead(given, fresh(self.like, shape, dtype, make))

    def update(self, given):
        """An array that the kernel reads and writes."""
        made = self.write(given, given.shape, given.dtype)
        if made is not given:
            owner(made)[...] = owner(given)
        return made

    def add_to(self, given, shape, accumulate):
        """An array for the gradient of a parameter. Where they accumulate, the kernel finds there what it adds to."""
        if accumulate and given is not None:
            return self.update(given)
        return self.write(given, shape, make="zeros" if accumulate else "empty")

    def heads(self, x, multiple=1):
        """Heads (B, H, T, D) to read, with any strides. Zeros fill D up to a multiple of `multiple`; rows start at such
        multiples, then, too, and no stride is 0 (a broadcast array): the copy engine's rules."""
        if self._walkable(x, multiple) and x.shape[-1] % multiple == 0:
            return x
        return self._copy(x, _wider(x.shape, multiple), x.dtype)

    def write_heads(self, given, shape, multiple=1):
        """The same to write into."""
        wide = _wider(shape, multiple)
        if given is not None and self._walkable(given, multiple) and wide == shape:
            return given
        if given is None and wide != shape:
            given = fresh(self.like, shape, self.like.dtype)
        return self._instead(given, fresh(self.like, wide, self.like.dtype))

    def launch(self, rung, *arguments):
        """Calls the launcher; Heads are given as heads(x)."""
        codes = (DTYPES[dtype_name(self.like.dtype)],) if rung.signature.parameters[0].name == "dtype" else ()
        self.machine.launch(rung, [*codes, *arguments], self.like)

    def results(self, *written):
        """What the op returns: each result where the caller wants it."""
        wanted = {id(made): given for given, made in self.late}
        for given, made in self.late:
            owner(given)[...] = owner(made)[..., :given.shape[-1]] if given.ndim else owner(made)
        found = tuple(x if x is None else owner(wanted.get(id(x), x)) for x in written)
        return found[0] if len(found) == 1 else found

    def _walkable(self, x, multiple):
        """Whether a kernel of heads can go through x by its strides. (An array that is copied to a GPU and back must be
        contiguous, or what lies between its numbers would be copied too.)"""
        return plain(x) or (self.machine.in_place(x) and x.ctypes.data % ALIGNMENT == 0
                            and (x.strides[-1] == x.itemsize or x.shape[-1] == 1)
                            and all(stride % (multiple * x.itemsize) == 0 and (multiple == 1 or stride > 0 or n == 1)
                    for n, stride in zip(x.shape, x.strides[:3], strict=False)))

    def _instead(self, given, made):
        if given is not None:
            self.late.append((given, made))
        return made

    def _copy(self, x, shape, dtype):
        made = fresh(x, shape, dtype, "zeros" if shape != x.shape else "empty")
        owner(made)[..., :x.shape[-1]] = owner(x)
        return made


def _wider(shape, multiple):
    return (*shape[:-1], shape[-1] + -shape[-1] % multiple)


def strides(x):
    """Heads as a launcher takes them: the array and its strides, in elements."""
    return x, *(stride // x.itemsize for stride in x.strides[:3])


class Emulator:
    """The machine that every computer has."""
    capability = 80

    def __init__(self):
        emulator.ready()

    def has(self, rung):
        return rung.runs_on(self.capability)

    def in_place(self, x):
        return True

    def refuse(self, op, x):
        if device(x) is not None:
            raise TypeError(f"{op}: an array is on a GPU, must be in the CPU's memory for the emulator")

    def launch(self, rung, arguments, like):
        emulator.call(emulator.library(rung.path), rung.signature.name, *arguments, contiguous=False)
