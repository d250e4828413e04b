"""How adapters.py calls what students write in C++ and CUDA.

    from native import library

    layernorm = library("student/layernorm.cpp")
    layernorm.layernorm_forward(x, weight, y, rows, C, eps)   # extern "C" void layernorm_forward(const float* x, ...)

Arrays arrive as pointers to their first element, ints as int64_t, floats as float. A .cu file runs on the CPU, watched
by the emulator (minigpt/emulator), which knows its functions' arguments. A source is compiled when a function of it is
first called: so one that does not compile costs its own tasks only.

This module stands beside worker.py, alone: what cannot be done here, compiling, it asks the grader for.
"""

import ctypes
import dataclasses
import itertools
import os

import numpy as np

folder = None                             # of the submission: whoever imports its adapters.py says
seen = None                               # what the emulator counted in the latest call of a kernel's launcher
orders = itertools.cycle(("forward", "reversed"))                             # of a block's warps, and of blocks
SECONDS = 8                               # for a launcher; then the emulator says where it is. The jail gives 10


class NotBuilt(Exception):
    """A library that is needed and not there yet; worker.py passes this on to the grader, who builds it."""


class NotCallable(Exception):
    """A function that the assignment asks for is not there, or not with these arguments: its words say it all."""


def library(source):
    """The extern "C" functions of a source, named as in the submission, as attributes."""
    return Library(source)


class Library:
    def __init__(self, source):
        self._source, self._loaded = source, None

    def __getattr__(self, name):
        def call(*arguments):
            if self._loaded is None:
                self._loaded = load(self._source)
            function = getattr(self._loaded, name, None)
            if function is None:
                raise NotCallable(f'{self._source} has no function {name}; is it still there, and extern "C"?')
            if isinstance(self._loaded, ctypes.CDLL):
                arguments, function.restype = [as_c(x) for x in arguments], None
            return function(*arguments)
        return call


def find(source):
    """The path of its library. (With --debug-here plugin.py puts a function in this one's place, which compiles.)"""
    path = os.path.join(folder, f"{source}.so")
    if not os.path.exists(path):
        raise NotBuilt(source)
    return path


def load(source):
    path = find(source)
    if source.endswith(".cu"):
        from minigpt.emulator import Library as Emulated

        return Watched(Emulated(os.path.join(folder, source), include=[folder], built=path))
    return ctypes.CDLL(path)


class Watched:
    """A .cu file's functions. What the emulator finds in a call ends it, as a KernelError, what it counts is kept. What
    depends on the order of the threads differs from one call to the next."""

    def __init__(self, emulated):
        self._emulated = emulated

    def __getattr__(self, name):
        try:
            function = getattr(self._emulated, name)
        except AttributeError as error:
            raise NotCallable(str(error).replace(folder + os.sep, "")) from None

        def call(*arguments):
            global seen
            from minigpt import emulator

            order = next(orders)
            with emulator.watch(warps=order, blocks=order, timeout=SECONDS) as report:
                try:
                    function(*arguments)
                except (TypeError, ValueError) as error:
                    raise NotCallable(f"{error}; leave the launcher's arguments as they were") from None
            seen = {what: [dataclasses.asdict(x) for x in getattr(report, what)] for what in ("kernels", "lines")}
            if report.findings:
                raise emulator.KernelError(report.findings)
        return call


def as_c(x):
    """An argument as C takes it. TypeError for what C would misread."""
    if isinstance(x, np.ndarray) and x.flags.c_contiguous:
        return ctypes.c_void_p(x.ctypes.data)
    if isinstance(x, (bool, int, np.integer)):
        return ctypes.c_int64(x)
    if isinstance(x, (float, np.floating)):
        return ctypes.c_float(x)
    kind = "an array with gaps" if isinstance(x, np.ndarray) else type(x).__name__
    raise TypeError(f"{kind} cannot be handed to C, only arrays without gaps and numbers")
