"""The mirror: one set of operations, one file a backend.

    ops = minigpt.ops.load("cpp")         # or "numpy", the specification
    y, mean, rstd = ops.layernorm_forward(x, weight, bias)

Every backend is a module with the same functions in the same order; read numpy_ops.py first.
"""

import importlib
import importlib.util
import os
import sys

BACKENDS = ("numpy", "cpp", "cuda", "emulated")


def load(name):
    """The module that holds the operations of one backend. ValueError for an unknown name; ImportError, saying why
    in one line, for one that does not load on this machine."""
    if name not in BACKENDS:
        raise ValueError(f"ops.load: no backend named {name!r}, there are {', '.join(BACKENDS)}")
    try:
        return _emulated() if name == "emulated" else importlib.import_module(f".{name}_ops", __name__)
    except AttributeError as error:  # a module built from older sources lacks what is asked of it
        raise ImportError(f"the {name} kernels are older than this Python code ({error}); build them again: "
                          "pip install -e .") from None


def _emulated():
    """cuda_ops.py once more, under a name that tells it which machine to use."""
    name = f"{__name__}.emulated_ops"
    if name not in sys.modules:
        spec = importlib.util.find_spec(".cuda_ops", __name__)
        spec = importlib.util.spec_from_file_location(name, spec.origin)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


def why_not(name):
    """None if a backend loads here, else the reason in one line."""
    try:
        load(name)
    except ImportError as error:
        return str(error)


def available():
    """{backend: None if it loads here, else the reason why not, in one line}."""
    return {name: why_not(name) for name in BACKENDS}


def default():
    """The fastest backend that loads here: "cpp" where it was built, or was asked for by MINIGPT_ISA, else "numpy"."""
    return "cpp" if os.environ.get("MINIGPT_ISA") or why_not("cpp") is None else "numpy"


def num_threads():
    """The number of threads that the C++ kernels use; 1 where they are not built."""
    return load("cpp").num_threads() if why_not("cpp") is None else 1


def set_num_threads(n):
    """Lets the C++ kernels use n threads, n >= 1; the default is OMP_NUM_THREADS, or else the number of cores. Results
    do not depend on it. Does nothing where the kernels are not built (NumPy's BLAS has settings of its own)."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"set_num_threads: n is {n!r}, must be an integer of 1 or more")
    if why_not("cpp") is None:
        load("cpp").set_num_threads(n)
