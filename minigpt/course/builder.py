"""Compiles the C++ and CUDA sources of a submission, in a jail like that of the student's functions: a source may
attack the compiler, with templates that never end, or an #include of what is none of its business.

worker.py calls build() here as it calls the functions of adapters.py there. C++ becomes a library that ctypes loads,
CUDA one of the emulator's (minigpt/emulator).
"""

import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np

FLAGS = ("-std=c++17", "-O2", "-g", "-w", "-fPIC", "-shared", "-ffp-contract=off")      # the same numbers everywhere
SANITIZED = ("-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
FEW_WORDS = {"g++": ("-fmax-errors=5", "-ftemplate-backtrace-limit=3", "-fdiagnostics-color=never"),
             "clang++": ("-ferror-limit=5", "-ftemplate-backtrace-limit=3", "-fno-color-diagnostics")}
LINES, WIDTH, WORDS = 30, 200, 2**16      # of the compiler's words, as many as can help
STOPPED = ("terminated program", "virtual memory exhausted", "out of memory", "memory exhausted", "LLVM ERROR")


class CompileError(Exception):
    """The compiler's words."""


def compiler(path=None) -> str:
    """The C++ compiler's name. ImportError where there is none. `path`: where to look, default $PATH."""
    for name in FEW_WORDS:
        if shutil.which(name, path=path):
            return name
    raise ImportError("course: this assignment needs a C++ compiler, and neither g++ nor clang++ was found: "
                      "apt install g++ (Debian, Ubuntu), xcode-select --install (macOS)")


def build(folder, source, sanitized):
    """Compiles the source of that name in the folder of a submission -> the bytes of the library, as an array."""
    with tempfile.TemporaryDirectory(dir=os.getcwd()) as made:
        words = open(os.path.join(made, "words"), "w+b")
        try:
            library = (emulated if source.endswith(".cu") else plain)(folder, source, sanitized, made, words)
        except subprocess.CalledProcessError:
            words.seek(0)
            raise CompileError(readable(words.read(WORDS).decode(errors="replace"), source)) from None
        return np.fromfile(library, np.uint8)


def plain(folder, source, sanitized, made, words):
    name, library = compiler(), os.path.join(made, "library.so")
    linker = ("-Wl,-z,defs",) if sys.platform == "linux" else ()              # what is not defined is an error now
    subprocess.run([name, *FLAGS, *SANITIZED * sanitized, *FEW_WORDS[name], source, "-o", library, *linker],
                   stdin=subprocess.DEVNULL, stdout=words, stderr=words, check=True, cwd=folder,
                   env=os.environ | {"TMPDIR": made})
    return library


def emulated(folder, source, sanitized, made, words):
    """Its own checks take the sanitizers' place. In a jail the emulator's runtime lies there, compiled by who started
    us; with --debug-here the emulator's own cache has it."""
    from minigpt.emulator import CompileError as NotCompiled
    from minigpt.emulator import build as emulator

    if (runtime := emulator.sources().parent / "runtime").is_dir():
        os.environ["XDG_CACHE_HOME"] = made
        for path in runtime.iterdir():
            shutil.copy(path, emulator.cache_folder())
    try:
        return emulator.build(os.path.join(folder, source), checked=True, include=[folder])
    except NotCompiled as error:
        own, _, _ = str(error).partition("\n\nAll that the compiler says:")        # of launches, templates in templates
        words.write(own.replace(f"{folder}/", "").encode())
        raise subprocess.CalledProcessError(1, source) from None


def readable(words, source):
    """The first of the compiler's words; where it was stopped rather than done, that too."""
    lines = [line[:WIDTH] for line in words.splitlines()]
    if any(mark in words for mark in STOPPED):
        lines = [line for line in lines if any(mark in line for mark in STOPPED)]
        lines.insert(0, "the compiler was stopped: it took too much time or memory (templates without end?)")
    more = [f"... and {len(lines) - LINES} more lines"] if len(lines) > LINES else []
    return "\n".join([f"{source} does not compile:", *lines[:LINES], *more])
