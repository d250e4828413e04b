"""What all tutorials share: the check of an exercise, C++ and CUDA compiled from a string, the package's real lines,
a stopwatch, and how pictures look.

A tutorial is plain Python with comments between (jupytext's percent format). `make notebooks` runs it and writes the
notebook; build.py says how.
"""

import ctypes
import functools
import inspect
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np

from minigpt import emulator
from minigpt.emulator import build, launchers

LANGUAGE = {".py": "python", ".cpp": "cpp", ".h": "cpp", ".cu": "cpp", ".cuh": "cpp"}
BLUE, RED, GREEN, GREY, ORANGE = "#4878a8", "#c03028", "#3a8a4d", "#8a8a8a", "#d98c1f"
plt.rcParams.update({
    "figure.figsize": (8, 3.2), "figure.dpi": 100, "figure.constrained_layout.use": True, "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.titlesize": 10,
    "axes.prop_cycle": plt.cycler(color=[BLUE, RED, GREEN, ORANGE, GREY]), "image.cmap": "viridis",
})


def here(name="") -> Path:
    """A file of this folder, from wherever the tutorial is run."""
    return Path(__file__).parent / name


def case(*arguments, want, why=""):
    """One call of an exercise's function: what it should return, and what to look at if it does not."""
    return arguments, want, why


def check(function, *cases, tolerance=1e-6):
    """Calls a function as an exercise's cases say, and prints one line: right, wrong (and why), or not written yet.

    Numbers may differ from the wanted ones by `tolerance` times the largest of these; whole numbers may not."""
    print(verdict(function, cases, tolerance))


def verdict(function, cases, tolerance=1e-6):
    name = function.__name__
    for number, (arguments, want, why) in enumerate(cases):
        before = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        reason = f"\n  {why}" if why else ""
        call = f"{name}({', '.join(map(short, arguments))})"
        try:
            got = function(*arguments)
        except Exception as error:
            return f"wrong: {call} raised {type(error).__name__}: {error}{reason}"
        if got is None and want is not None:
            if number:
                return f"wrong: {call} returns nothing{reason}"
            return f"not written yet: {name} returns nothing; put your lines where its ... is, and run both cells again"
        for old, new in zip(before, arguments, strict=True):
            if isinstance(old, np.ndarray) and not np.array_equal(old, new, equal_nan=old.dtype.kind in "fc"):
                return f"wrong: {name} changed its argument; work on a copy"
        if problem := difference(got, want, tolerance):
            return f"wrong: {call} {problem}{reason}"
    return f"right: {name}, {len(cases)} case{'s' * (len(cases) > 1)}"


def difference(got, want, tolerance=1e-6):
    """What is wrong with a result, in words; None if nothing is. Several results are compared one by one."""
    if isinstance(want, tuple):
        if not (isinstance(got, (tuple, list)) or np.ndim(got)) or len(got) != len(want):
            return f"is {short(got)}, expected a tuple of {len(want)}"
        found = (difference(g, w, tolerance) for g, w in zip(got, want, strict=True))
        return next((f"result {i}: {problem}" for i, problem in enumerate(found) if problem), None)
    if not isinstance(want, (np.ndarray, float, np.floating)):
        same = (type(got) is type(want) or isinstance(got, np.integer)) and got == want
        return None if same else f"is {short(got)}, expected {short(want)}"
    try:
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    except (TypeError, ValueError):
        return f"is {short(got)}, expected {'numbers' if np.ndim(want) else short(want)}"
    if got.shape != want.shape:
        return f"has shape {got.shape}, expected {want.shape}"
    with np.errstate(invalid="ignore"):   # inf - inf, where both are infinite and so equal
        distance = np.where(got == want, 0, np.abs(got - want))
    finite = np.abs(want[np.isfinite(want)])
    if distance.size == 0 or np.all(distance <= tolerance * max(finite.max(initial=0), 1e-30)):   # not so where NaN is
        return None
    worst = np.unravel_index(np.argmax(np.nan_to_num(distance, nan=np.inf)), distance.shape)
    place = f" at [{', '.join(map(str, worst))}]" if want.ndim else ""
    return f"is {got[worst]:.6g}{place}, expected {want[worst]:.6g}"


def short(value):
    """A value in a few characters; of a large array the shape, of a function its name."""
    if isinstance(value, np.ndarray) and value.size > 6:
        return f"array of shape {value.shape}"
    if inspect.isfunction(value):
        return value.__name__
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 60 else text[:57] + "..."


class CompileError(ValueError):
    """The compiler's words, with the lines of the string as they are numbered there."""


@functools.cache
def cpp(text, *flags):
    """Compiles C++ and loads it: the functions it marks `extern "C"`, called with an array for a pointer and a number
    for a number; what does not fit is refused in words. #include finds csrc/cpp; later flags win over -O3.
    CompileError where the C++ is wrong, ImportError in one line where there is no compiler."""
    try:
        compiler = build.compiler()
    except ImportError:
        raise ImportError("this cell needs a C++ compiler (g++ or clang++), and there is none here") from None
    known, refused = launchers.signatures(text, "line")
    if refused or not known:
        words = [why.replace("line:", "line ") for why in refused.values()]
        raise CompileError("; ".join(words) or 'no function is marked extern "C"')
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    with tempfile.TemporaryDirectory() as folder:
        written, made = Path(folder, "lines.cpp"), f"{folder}/{next(iter(known))}.so"
        written.write_text(text, encoding="utf-8")
        command = [compiler, "-std=c++17", "-O3", native, "-shared", "-fPIC", "-pthread", "-Wno-psabi", *flags,
                   f"-I{here('../csrc/cpp').resolve()}", written, "-o", made]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            words = run.stderr.replace(f"{written}:", "line ").splitlines()
            first = next((i for i, line in enumerate(words) if "error" in line), 0)
            raise CompileError("\n".join(words[first:first + 8]))
        library = ctypes.CDLL(made)
    return SimpleNamespace(**{name: _callable(library[name], signature) for name, signature in known.items()})


def _callable(function, signature):
    parameters = signature.parameters
    function.argtypes = [p.ctype for p in parameters]
    function.restype = (launchers.INTEGERS | launchers.FLOATS).get(signature.returns)

    def call(*arguments):
        if len(arguments) != len(parameters):
            raise TypeError(f"{signature} takes {len(parameters)} arguments, not {len(arguments)}")
        return function(*(launchers.argument(signature.name, p, x) for p, x in zip(parameters, arguments, strict=True)))
    return call


def check_cpp(text, call, *cases, tolerance=1e-5):
    """As `check`, for an exercise whose answer is C++ in a string: call(library, *arguments) calls it."""
    if "..." in text:
        print("not written yet: put your lines where the ... of the C++ is, and run both cells again")
        return
    try:
        library = cpp(text)
    except CompileError as error:
        print(f"wrong: the C++ does not compile\n{error}")
        return

    def function(*arguments):
        return call(library, *arguments)
    function.__name__ = next(iter(vars(library)))
    print(verdict(function, cases, tolerance))


def cuda(code):
    """CUDA in a string, compiled for the emulator: the launchers in it, functions that are `extern "C"`. #include finds
    csrc/cuda."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cu")
        path.write_text(code.lstrip("\n"), encoding="utf-8")
        return emulator.compile(path, include=[here("../csrc/cuda").resolve()])


def count(report, what, **of):
    """The sum of one column of an emulator's report; of={"space": "shared"} and the like choose rows."""
    return sum(getattr(line, what) for line in report.lines
               if all(getattr(line, name) == value for name, value in of.items()))


def check_kernel(code, launcher, *cases, most=None, tolerance=1e-6):
    """Compiles an exercise's CUDA, runs its launcher under the emulator's eyes, and prints one line as check() does.

    What a case wants is what the kernel shall leave in the arrays that are given full of NaN. most={"sectors": 8}: and
    in the last case the report may count no more than that."""
    print(kernel_verdict(code, launcher, cases, most or {}, tolerance))


def kernel_verdict(code, launcher, cases, most, tolerance):
    if "..." in code:
        return "not written yet: put your lines where the ... is, and run both cells again"
    try:
        kernel = getattr(cuda(code), launcher)
    except emulator.CompileError as error:
        return f"wrong: the CUDA does not compile\n{error}"
    for arguments, want, why in cases:
        for order in ("forward", "reversed"):
            given = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
            report = emulator.run(kernel, *given, warps=order, blocks=order, timeout=20)
            got = tuple(g for g, a in zip(given, arguments, strict=True)
                        if isinstance(a, np.ndarray) and np.isnan(a).all())
            problem = report.findings[0] if report.findings else difference(
                got if isinstance(want, tuple) else got[0], want, tolerance)
            if problem:
                return f"wrong: {problem}" + (f"\n  {why}" if why else "")
    for what, enough in most.items():
        if (found := count(report, what)) > enough:
            return f"wrong: the numbers are right, but it takes {found} {what}, where {enough} are enough"
    return f"right: {launcher}, {len(cases)} case{'s' * (len(cases) > 1)}, in two orders of threads"


def source(what, begin=None, end=None):
    """Prints real lines: of a function of the package, or of a file of csrc/, from the first line that contains `begin`
    to the next one that contains `end`. They are read when the cell runs, so they cannot be stale."""
    if callable(what):
        lines, first = inspect.getsourcelines(what)
        path = Path(inspect.getsourcefile(what))
    else:
        path, first = here("..").resolve() / what, 1
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        start = 0 if begin is None else next((i for i, line in enumerate(lines) if begin in line), None)
        if start is None:
            raise ValueError(f"source: no line of {what} contains {begin!r}")
        stop = len(lines) if end is None else next((i for i in range(start, len(lines)) if end in lines[i]), None)
        if stop is None:
            raise ValueError(f"source: no line of {what} after {begin!r} contains {end!r}")
        lines, first = lines[start:stop + 1], start + 1
    title, text = f"{path.relative_to(here('..').resolve()).as_posix()}, line {first}", "".join(lines).rstrip()
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython():     # a notebook: in colour
        sys.modules["IPython"].display.display_markdown(f"`{title}`\n```{LANGUAGE[path.suffix]}\n{text}\n```", raw=True)
    else:
        print(f"# {title}\n{text}")


def seconds(function, *arguments, repeats=5):
    """The shortest of several calls' times, after one that warms up: the one least disturbed by other programs."""
    function(*arguments)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


def attention_map(panel, weights, tokens, title=""):
    """Draws one head's weights (T, T): the row is the token that looks, the column the one that is looked at."""
    picture = panel.imshow(weights, vmin=0, vmax=1)
    labels = [token.replace("\n", "\\n") for token in tokens]
    panel.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    panel.set_yticks(range(len(labels)), labels, fontsize=8)
    panel.set_title(title)
    return picture
