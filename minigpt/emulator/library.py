"""A compiled kernel file in this process: its launchers are called, and what was seen becomes errors and reports."""

import contextlib
import contextvars
import ctypes
import functools
import json
import re
import signal
import threading
import warnings
from pathlib import Path

import numpy as np

from ..ops.cuda_arrays import memory
from . import launchers
from .build import build, checked_arguments
from .report import KernelError, Report
from .rewrite import read

ORDERS = ("forward", "reversed", "shuffled")
COPIES = ("late", "early")

# (the report, the options) inside watch(), of this thread alone
_watching = contextvars.ContextVar("watching", default=None)


class Library:
    """The launchers of one .cu file as functions. All attributes that are not launchers begin with an underscore."""

    def __init__(self, path, checked=True, include=(), built=None):
        """built: the library that was made of the file before, by build()."""
        path, include = checked_arguments(path, checked, include)
        self._path, self._checked, self._include = Path(path), checked, include
        known, self._skipped = launchers.signatures(read(self._path), str(path))
        self._library = ctypes.CDLL(str(built or build(path, checked, include)))
        self._signatures = {name: of for name, of in known.items()                 # without those left out by #if
                            if hasattr(self._library, name)}
        self._library.emulator_report.restype = ctypes.c_char_p
        self._library.emulator_guarded.restype = ctypes.c_void_p
        self._lock = threading.Lock()     # the machine in the library runs one launch at a time
        for reason in self._skipped.values():
            warnings.warn(f"not a function of the library: {reason}", stacklevel=3)

    def __dir__(self):
        return [*super().__dir__(), *self._signatures]

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._signatures:
            if name in self.__dict__.get("_skipped", ()):
                raise AttributeError(self._skipped[name])
            has = ", ".join(map(str, self._signatures.values()))
            raise AttributeError(f'{self._path} defines no extern "C" function {name}(...); it has {has or "none"}'
                                 + ("" if has else ': write extern "C" before the function that launches the kernel'))

        def launcher(*arguments, **named):
            return call(self, name, *_in_order(self._signatures[name], arguments, named))
        return launcher

    @functools.cached_property
    def _when_checked(self):
        return self if self._checked else Library(self._path, True, self._include)

    def _run(self, name, arguments, contiguous, options):
        """Runs a launcher; returns what it returns, and what was seen, as the runtime says it."""
        signature = self._signatures[name]
        taken = signature.taken
        if len(arguments) != len(taken):
            raise TypeError(f"{signature} takes {len(taken)} arguments, not {len(arguments)}")
        words = [launchers.argument(name, p, x, contiguous) for p, x in zip(taken, arguments, strict=True)]
        function = getattr(self._library, f"emulator_call_{name}")
        function.restype = (launchers.INTEGERS | launchers.FLOATS).get(signature.returns)
        function.argtypes = [p.ctype for p in signature.parameters]
        with self._lock:
            self._library.emulator_clear()
            skip = options.get("skip")
            file, _, line = (skip or ":0").rpartition(":")
            self._library.emulator_skip(file.encode() if skip else None, int(line))
            for option in DEFAULTS:
                self._library.emulator_set(option.encode(), ctypes.c_int64(options.get(option, DEFAULTS[option])))
            self._library.emulator_set(b"interruptible", ctypes.c_int64(_stops_at_ctrl_c()))
            self._guard(taken, arguments)
            if self._checked:                                           # arrays are copied, apart from each other
                words = [self._library.emulator_guarded(ctypes.c_void_p(word)) if isinstance(x, np.ndarray) else word
                         for word, x in zip(words, arguments, strict=True)]
            words = iter(words)
            try:
                result = function(*(None if p.kind == "cudaStream_t" else next(words) for p in signature.parameters))
            except KeyboardInterrupt:
                report = Report()
                report.add(json.loads(self._library.emulator_report()))
                raise KeyboardInterrupt(*(f.text for f in report.findings if f.kind == "interrupted")) from None
            if self._checked:
                self._library.emulator_copy_back()
            return result, json.loads(self._library.emulator_report())

    def _guard(self, parameters, arguments):
        """Tells the runtime which memory the kernel may touch."""
        for parameter, x in zip(parameters, arguments, strict=True):
            if isinstance(x, np.ndarray) and x.size:
                before, extent = memory(x.shape, x.strides, x.itemsize)
                self._library.emulator_array(parameter.name.encode(), ctypes.c_void_p(x.ctypes.data - before),
                                             ctypes.c_int64(extent), ctypes.c_int64(x.itemsize), not parameter.const)


def _in_order(signature, arguments, named):
    """The arguments of a launcher as it takes them, when some are given by name."""
    names = [p.name for p in signature.taken]
    for name in named:
        if name not in names:
            raise TypeError(f"{signature} has no argument {name!r}")
        if name in names[:len(arguments)]:
            raise TypeError(f"{signature} is given {name} twice")
    if named and (missing := [name for name in names[len(arguments):] if name not in named]):
        raise TypeError(f"{signature} is not given {', '.join(missing)}")
    return (*arguments, *(named[name] for name in names[len(arguments):] if name in named))


def call(library, name, *arguments, contiguous=True):
    """Runs a launcher and returns what it returns. The stream among its parameters is left out. `contiguous`: whether
    arrays must be."""
    if watching := _watching.get():
        report, options = watching
        result, seen = library._when_checked._run(name, arguments, contiguous, options)
        report.add(seen)
        report.trace_is_full |= 0 < options["trace"] <= len(seen.get("trace", ()))
        return result
    result, seen = library._run(name, arguments, contiguous, {})
    if seen["findings"]:
        report = Report()
        report.add(seen)
        raise KernelError(report.findings)
    return result


def _stops_at_ctrl_c():
    """Whether Ctrl-C raises KeyboardInterrupt here, so that a kernel may be left in the middle."""
    return (threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler)


DEFAULTS = dict(warp_order=0, block_order=0, seed=0, copies_early=0, trace=0, timeout=0)


@contextlib.contextmanager
def watch(warps="forward", blocks="forward", seed=0, copies="late", trace=0, skip=None, timeout=None):
    """Collects what the kernels of this thread do, in a Report; mistakes become findings in it instead of errors. Works
    for compile()d files and for ops.load("emulated").

    Threads take turns here, in an order that no GPU promises: `warps` and `blocks` choose one ("forward", "reversed",
    "shuffled" by `seed`). `copies`: whether an asynchronous copy happens as "early" as it may, or as "late". `trace`:
    keep this many accesses of warps, in their order, in report.trace. `skip`: leave out the barrier or wait that stands
    there, a "file:line" of report.sites. `timeout`: seconds after which a launcher is stopped where it is, and that
    line named; without it a kernel may take as long as it likes, until Ctrl-C."""
    for name, value, known in (("warps", warps, ORDERS), ("blocks", blocks, ORDERS), ("copies", copies, COPIES)):
        if value not in known:
            raise ValueError(f"watch: {name} is {value!r}, must be one of {', '.join(known)}")
    for name, value in (("seed", seed), ("trace", trace)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 2**31:
            raise ValueError(f"watch: {name} is {value!r}, must be an integer, at least 0 and below 2^31")
    if skip is not None and not (isinstance(skip, str) and re.fullmatch(r".+:\d{1,9}", skip)):
        raise ValueError(f'watch: skip is {skip!r}, must be None or a "file:line" of report.sites')
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float, np.number))
                                or not 0.001 <= timeout <= 1_000_000):
        raise ValueError(f"watch: timeout is {timeout!r}, must be None or seconds, from 0.001 to a million")
    options = dict(warp_order=ORDERS.index(warps), block_order=ORDERS.index(blocks), seed=seed,
                   copies_early=COPIES.index(copies), trace=trace, skip=skip,
                   timeout=round(1000 * (timeout or 0)))
    report = Report()
    before = _watching.set((report, options))
    try:
        yield report
    finally:
        _watching.reset(before)
    if skip is not None and not any(_is_at(site, skip) for site in report.sites):
        report.notes.append(f"Nothing was left out: no barrier or wait was reached at skip={skip!r}.")


def _is_at(site, skip):
    """Whether two "file:line" name one place, each of them with as much of the path as it has."""
    return site.endswith(skip) or skip.endswith(site)


def run(function, *arguments, **options) -> Report:
    """Calls a launcher inside watch(**options): report = emulator.run(kernels.add, a, b, c, n)."""
    if not callable(function):
        raise TypeError(f"run: the first argument is {function!r}, must be a launcher: run(kernels.add, a, b, c, n)")
    with watch(**options) as report:
        function(*arguments)
    return report


def library(path) -> Library:
    """The build of a .cu file of ours that is needed here: the checked one inside watch(), else the fast one."""
    return _loaded(path, _watching.get() is not None)


@functools.cache
def _loaded(path, checked):
    return Library(path, checked)
