"""The mirror: one set of operations, one file a backend.

    ops = minigpt.ops.load("cpp")         # or "numpy", the specification
    y, mean, rstd = ops.layernorm_forward(x, weight, bias)

Every backend is a module with the same functions in the same order; read numpy_ops.py first.
"""

import importlib
import os

BACKENDS = ("numpy", "cpp")


def load(name):
    """The module that holds the operations of one backend. ValueError for an unknown name; ImportError, saying why
    in one line, for one that does not load on this machine."""
    if name not in BACKENDS:
        raise ValueError(f"ops.load: no backend named {name!r}, there are {', '.join(BACKENDS)}")
    try:
        return importlib.import_module(f".{name}_ops", __name__)
    except AttributeError as error:  # a module built from older sources lacks what is asked of it
        raise ImportError(f"the {name} kernels are older than this Python code ({error}); build them again: "
                          "pip install -e .") from None


def available():
    """{backend: None if it loads here, else the reason why not, in one line}."""
    reasons = {}
    for name in BACKENDS:
        try:
            load(name)
            reasons[name] = None
        except ImportError as error:
            reasons[name] = str(error)
    return reasons


def default():
    """The fastest backend that loads here: "cpp" where it was built, or was asked for by MINIGPT_ISA, else "numpy"."""
    return "cpp" if os.environ.get("MINIGPT_ISA") or available()["cpp"] is None else "numpy"


def num_threads():
    """The number of threads that the C++ kernels use; 1 where they are not built."""
    return load("cpp").num_threads() if available()["cpp"] is None else 1


def set_num_threads(n):
    """Lets the C++ kernels use n threads, n >= 1; the default is OMP_NUM_THREADS, or else the number of cores. Results
    do not depend on it. Does nothing where the kernels are not built (NumPy's BLAS has settings of its own)."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"set_num_threads: n is {n!r}, must be an integer of 1 or more")
    if available()["cpp"] is None:
        load("cpp").set_num_threads(n)
