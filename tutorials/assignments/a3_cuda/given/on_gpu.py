"""Your kernels on a GPU, if you have one: compares them with NumPy, and takes their time. Not part of the grade.

    python given/on_gpu.py                # needs nvcc, and the package minigpt
"""

import ctypes
import shutil
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np

from minigpt.ops import numpy_ops as spec

HERE = Path(__file__).resolve().parent.parent
RUNS = 10                                 # of which the fastest counts
microseconds = 0.0                        # that the latest kernel took


def build(source) -> Path:
    """Compiles a file of yours, together with gpu.cu, to a library."""
    if not shutil.which("nvcc"):
        sys.exit("on_gpu.py: there is no nvcc here, the compiler of NVIDIA's CUDA toolkit")
    made = Path(tempfile.mkdtemp(prefix="on-gpu-"), f"{Path(source).stem}.so")
    subprocess.run(["nvcc", "-O3", "-std=c++17", "-arch=native", "-shared", "-Xcompiler", "-fPIC", HERE / source,
                    HERE / "given" / "gpu.cu", "-o", made], check=True)
    return made


class Library:
    """The functions of a source, as those of `native.library`; arrays are copied to the GPU and back."""

    def __init__(self, source):
        self._library = ctypes.CDLL(str(build(source)))

    def _gpu(self, name, *arguments):
        function = self._library[f"gpu_{name}"]
        function.restype = ctypes.c_char_p
        if problem := function(*arguments):
            sys.exit(f"CUDA: {problem.decode()}")

    def __getattr__(self, name):
        def call(*arguments):
            global microseconds
            there = [self._copied(x) if isinstance(x, np.ndarray) else number(x) for x in arguments]
            taken = []
            for _ in range(RUNS):
                began = time.perf_counter()
                self._library[name](*there)
                self._gpu("wait")
                taken.append(time.perf_counter() - began)
            microseconds = 1e6 * min(taken)
            for x, copy in zip(arguments, there, strict=True):
                if isinstance(x, np.ndarray):
                    self._gpu("copy", ctypes.c_void_p(x.ctypes.data), copy, ctypes.c_size_t(x.nbytes))
                    self._gpu("free", copy)
        return call

    def _copied(self, x):
        there, size = ctypes.c_void_p(), ctypes.c_size_t(x.nbytes)
        self._gpu("allocate", ctypes.byref(there), size)
        self._gpu("copy", there, ctypes.c_void_p(x.ctypes.data), size)
        return there


def number(x):
    return ctypes.c_float(x) if isinstance(x, float) else ctypes.c_int(x)


def calls(rows, T):
    """(name in adapters.py, its arguments, what must come out) of all tasks."""
    rng = np.random.default_rng(0)

    def numbers(*shape):
        return rng.normal(0.5, 1, shape).astype(np.float32)

    x, dy, weight, bias = numbers(rows, 768), numbers(rows, 768), numbers(768), numbers(768)
    yield "residual_add", dict(a=x, b=dy), x + dy
    yield "transpose", dict(x=x), x.T
    for name in ("row_sums_shared", "row_sums_warp"):
        yield name, dict(x=x), x.sum(axis=1)
    y, mean, rstd = spec.layernorm_forward(x, weight, bias, eps=1e-5)
    yield "layernorm_forward", dict(x=x, weight=weight, bias=bias, eps=1e-5), (y, mean, rstd)
    backward = dict(dy=dy, x=x, weight=weight, mean=mean, rstd=rstd)
    dx, dweight, dbias = spec.layernorm_backward(**backward)
    yield "layernorm_backward_x", backward, dx
    yield "layernorm_backward_parameters", backward, (dweight, dbias)
    qkv = dict(zip("qkv", numbers(3, 1, 12, T, 32), strict=True), causal=True)
    out, lse = spec.attention_forward(**qkv)
    for name in ("attention_naive", "attention_tiled"):
        yield name, qkv, (out, lse)
    backward = dict(dout=numbers(*out.shape), out=out, lse=lse, **qkv)
    yield "attention_backward_keys", backward, spec.attention_backward(**backward)[1:]


def main(rows=4096, T=512):
    sys.modules["native"] = types.SimpleNamespace(library=Library)            # for adapters.py
    sys.path.insert(0, str(HERE))
    import adapters

    print(f"{'':32}{'error':>9}{'microseconds':>14}")
    for name, arguments, expected in calls(rows, T):
        got = getattr(adapters, name)(**arguments)
        pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
        error = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
        print(f"{name:32}{error:9.1e}{microseconds:14.1f}")


if __name__ == "__main__":
    main()
