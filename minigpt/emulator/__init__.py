"""CUDA kernels on the CPU: the same .cu files, compiled by g++ or clang++, run thread by thread and watched.

    import numpy as np
    from minigpt import emulator

    kernels = emulator.compile("add.cu")              # extern "C" void add(const float* a, ..., cudaStream_t stream)
    with emulator.watch() as report:
        kernels.add(a, b, c, len(a))                  # NumPy arrays and numbers; arrays are written in place
    print(report)                                     # what each line read and wrote, and what was wrong

A kernel that reads where it must not, races, or leaves a barrier to some of its threads only raises KernelError with
the file, the line and the thread; inside watch() findings are collected in the report instead.

What it cannot tell you: how long a kernel takes on a GPU, how many registers it needs, and whether it depends on the
order in which a GPU makes writes visible without a fence. Threads take turns here, one at a time.
"""

from .build import CompileError, ready
from .library import Library, call, library, run, watch
from .report import Finding, KernelError, Report

__all__ = ["CompileError", "Finding", "KernelError", "Library", "Report", "call", "compile", "library", "ready", "run",
           "watch"]


def compile(path, checked=True, include=()) -> Library:
    """Builds a .cu file, in a few seconds the first time, and loads it; its functions defined `extern "C"` become
    functions of the result. checked=False leaves out the checks and is several times faster. `include`: a list of
    folders of headers. Raises CompileError (a ValueError) with the compiler's words, in the file's own lines.

    Loading a file runs it, before any of its functions is called: C++ sets up its global variables. Give a file that
    you do not trust a process of its own (csrc/emulator/README.md, For instructors)."""
    return Library(path, checked, include)
