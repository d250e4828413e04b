"""The C++ backend: the functions of numpy_ops.py, computed by the kernels in csrc/cpp. float32 only.

Each function checks its arguments, makes the output arrays where the caller gave none, and calls the kernel.
"""

import importlib
import os

import numpy as np

from . import check

name = "cpp"


def _load():
    """Imports the module built for the best instruction set of this CPU (MINIGPT_ISA=base|avx2|avx512 asks for
    one). ImportError says in one line what is wrong."""
    try:
        base = importlib.import_module("minigpt._cpp_base")
    except ImportError as error:
        raise ImportError(f"the C++ kernels were not built ({error}); install a C++ compiler, then pip install -e .") \
            from None
    usable = base.cpu_isas()
    wanted = os.environ.get("MINIGPT_ISA")
    if wanted and wanted not in usable:
        raise ImportError(f"MINIGPT_ISA is {wanted!r}, but this CPU runs {', '.join(usable)}")
    for isa in [wanted] if wanted else usable:
        try:
            return importlib.import_module(f"minigpt._cpp_{isa}")
        except ImportError:
            if wanted:
                raise ImportError(f"MINIGPT_ISA is {wanted!r}, but minigpt._cpp_{wanted} was not built") from None
    return base


_C = _load()
kernels = {}


def set_num_threads(n):
    _C.set_num_threads(n)
