"""A compiled kernel file in this process: its launchers are called, and what was seen becomes errors and reports."""

import ctypes
import functools
import threading
from pathlib import Path

from . import launchers
from .build import build


class KernelError(RuntimeError):
    """What a kernel did wrong, in words: the file, the line, the thread."""


class Library:
    """The launchers of one .cu file as functions."""

    def __init__(self, path, checked=True, include=()):
        self.path = Path(path)
        self._signatures = launchers.signatures(self.path.read_text(encoding="utf-8"), str(path))
        self._library = ctypes.CDLL(str(build(path, checked, include)))
        self._lock = threading.Lock()     # the machine in the library runs one launch at a time

    def __dir__(self):
        return [*super().__dir__(), *self._signatures]

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._signatures:
            raise AttributeError(f'{self.path} defines no extern "C" void {name}(...); it has '
                                 f"{', '.join(map(str, self._signatures.values())) or 'none'}")
        return functools.partial(self.call, name)

    def call(self, name, *arguments, contiguous=True):
        """Runs a launcher. The stream, its last parameter, is left out."""
        signature = self._signatures[name]
        taken = [p for p in signature.parameters if p.kind != "cudaStream_t"]
        if len(arguments) != len(taken):
            raise TypeError(f"{signature} takes {len(taken)} arguments, not {len(arguments)}")
        words = [launchers.argument(name, p, x, contiguous) for p, x in zip(taken, arguments, strict=True)]
        words = words + [None] * (len(signature.parameters) - len(taken))
        function = getattr(self._library, name)
        function.restype, function.argtypes = None, [p.ctype for p in signature.parameters]
        with self._lock:
            function(*words)


@functools.cache
def library(path) -> Library:
    return Library(path, checked=False)

