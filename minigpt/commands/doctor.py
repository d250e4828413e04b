"""minigpt doctor: what was built, what this machine runs, and what stands in the way. One report, to be pasted whole.

Exit code 0 if the C++ kernels load and keep to the rules of floating point, else 1.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil

import numpy as np

from .. import __version__, nvcc
from .. import ops as backends

ISAS = ("base", "avx2", "avx512")

# What each package that is not required is for.
PACKAGES = {
    "regex": "GPT-2's and GPT-4's way of splitting text; quicker tokenizing",
    "tqdm": "a progress bar",
    "matplotlib": "pictures: losses, the ladders",
    "torch": "the peer in `minigpt bench`, a judge in the tests",
    "transformers": "the peer in `minigpt bench decode`, a judge in the tests",
    "llama_cpp": "a peer in `minigpt bench decode`, together with gguf",
    "gguf": "writes the file that llama_cpp reads in `minigpt bench decode`",
    "pytest": "the tests",
    "hypothesis": "the tests",
}

WORTH_HAVING = ("regex", "tqdm", "matplotlib")  # the others are for benchmarks and tests

# Settings that change how fast things are, and what they do.
VARIABLES = {
    "MINIGPT_ISA": "asks for one set of kernels in place of the fastest",
    "MINIGPT_NVCC": "the compiler of the CUDA kernels",
    "MINIGPT_CUDA": "1 builds the CUDA kernels where no GPU is seen too, 0 never builds them",
    "MINIGPT_CUDA_ARCHS": "the GPUs to build the CUDA kernels for",
    "CUDA_HOME": "where nvcc is looked for first",
    "OMP_NUM_THREADS": "sets the number of threads",
    "OMP_PROC_BIND": "ties threads to cores; with other programs beside, two may end up on one core",
    "OMP_WAIT_POLICY": "active: idle threads keep their cores busy",
    "GOMP_CPU_AFFINITY": "ties threads to cores",
    "OPENBLAS_NUM_THREADS": "sets NumPy's own threads",
    "OPENBLAS_CORETYPE": "makes NumPy's BLAS use the kernels of another CPU; unset it unless you know why it is there",
    "MKL_NUM_THREADS": "sets torch's own threads",
}


def add_arguments(parser):
    pass


def run(args):
    advice = []
    print(f"minigpt {__version__}, Python {platform.python_version()}, NumPy {np.__version__}, {platform.platform()}")
    print(f"CPU: {_cpu()}, {os.cpu_count()} cores")
    _backends(advice)
    if backends.available()["cpp"] is None:
        _kernels(advice)
        _arithmetic(advice)
    _cuda()
    _environment(advice)
    absent = _packages()
    if advice:
        print("\nWhat to do next:")
    elif absent:
        print(f"\nNothing that is needed is missing. Worth having: pip install {' '.join(absent)}")
    else:
        print("\nNothing is missing.")
    for line in advice:
        print(f"  - {line}")
    return 1 if advice else 0


def _cpu():
    from ..bench.machine import cpuinfo

    info = cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    return f"{name} (family {info['cpu family']} model {info['model']})" if "cpu family" in info else name


def _backends(advice):
    print("\nbackends")
    for name, problem in backends.available().items():
        _line(name, problem is None, problem or ("the default" if name == backends.default() else ""))
    if not (shutil.which("addr2line") or shutil.which("llvm-addr2line")):
        advice.append("so that the emulator can name lines, install addr2line (Debian: apt install binutils)")
    if any(backends.available()[name] is not None for name in ("cpp", "emulated")):
        compilers = [c for c in ("c++", "g++", "clang++") if shutil.which(c)]
        print(f"  C++ compilers here: {', '.join(compilers) or 'none'}")
        if not compilers:
            advice.append("install a C++ compiler (Debian: apt install g++; macOS: xcode-select --install)")
    if backends.available()["cpp"] is not None:
        advice.append("build the kernels: pip install -e . in the checkout, and read what it says about the kernels")


def _kernels(advice):
    from ..ops import cpp_ops

    extension, base = cpp_ops._C, importlib.import_module("minigpt._cpp_base")
    print("\nkernels")
    supported = base.cpu_isas()
    for isa in ISAS:
        built = importlib.util.find_spec(f"minigpt._cpp_{isa}") is not None
        notes = ["built" if built else "not built", "this CPU runs it" if isa in supported else "not for this CPU"]
        _line(isa, built, ", ".join(notes) + (", in use" if isa == extension.isa else ""))
        if isa in supported and not built:
            advice.append(f"build the kernels for {isa}, which this CPU runs: pip install -e . in the checkout")
    compiler = compiler_name(extension.compiler)
    print(f"  threads: {extension.num_threads()}, by {extension.threading}; compiler: {compiler}")
    if extension.isa != supported[0] and os.environ.get("MINIGPT_ISA"):
        advice.append(f"unset MINIGPT_ISA: {supported[0]} is faster than {extension.isa}")


def _cuda():
    """What stands in the way of the CUDA kernels, if anything. Never an advice: most machines have no GPU."""
    print("\nCUDA")
    print(f"  GPUs here: {', '.join(f'sm_{arch}' for arch in nvcc.seen()) or 'none seen by nvidia-smi'}")
    try:
        path = nvcc.find()
        print(f"  nvcc {nvcc.version(path)}, {path}: compiles for sm_{' sm_'.join(nvcc.offered(path))}")
        print(f"  pip install -e . builds the kernels for: sm_{' sm_'.join(nvcc.wanted(path))}")
    except nvcc.NoNvcc as reason:
        print(f"  not to be built: {reason}")


def compiler_name(version):
    """__VERSION__ with a name: clang's begins with one, g++'s is the bare number."""
    return f"g++ {version}" if version[:1].isdigit() else version


def _arithmetic(advice):
    """NaN and infinity must mean what they say, in the kernels and in the process that they run in."""
    print("\narithmetic")
    for name, good in arithmetic_checks(backends.load("cpp")).items():
        print(f"  {'ok   ' if good else 'WRONG'}  {name}")
        if not good:
            advice.append(f"the kernels are wrong where {name}; were they compiled with -ffast-math (CXXFLAGS)?")


def arithmetic_checks(ops):
    """{what must hold: whether it does}."""
    nan, inf, row = np.float32(np.nan), np.float32(np.inf), np.linspace(-1, 1, 40, dtype=np.float32)

    def with_value(value):
        x = np.stack([row, row])
        x[1, 7] = value
        return x

    one = np.ones(40, np.float32)
    normed = ops.layernorm_forward(with_value(nan), one, one)[0]
    activated = ops.gelu_forward(with_value(nan))
    loss = ops.cross_entropy_forward(with_value(-inf), np.array([3, 3]))[0]
    lost = ops.cross_entropy_forward(with_value(nan), np.array([3, 3]))[0]
    heads = with_value(1).reshape(1, 1, 2, 40)
    unseen, lse = ops.attention_forward(heads, heads[:, :, :1].copy(), heads[:, :, :1].copy(), causal=True)
    tiny = np.full(40, 1e-40, np.float32)
    return {
        "NaN in a row stays NaN in that row": bool(np.isnan(normed[1]).all() and np.isfinite(normed[0]).all()),
        "NaN goes through the exponential": bool(np.isnan(activated[1, 7]) and np.isnan(activated).sum() == 1),
        "NaN in the logits is NaN in the loss": bool(np.isnan(lost[1]) and np.isfinite(lost[0])),
        "a logit of minus infinity has probability 0": bool(np.isfinite(loss).all()),
        "a query that sees no key gives 0, and lse is minus infinity": bool((unseen[0, 0, 0] == 0).all()
                                                                              and lse[0, 0, 0] == -inf),
        "numbers below 1e-38 are not flushed to zero": bool((tiny * np.float32(0.5) > 0).all()),
    }


def _environment(advice):
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    print("\nsettings in the environment" if found else "\nsettings in the environment: none that matter here")
    for name, value in found.items():
        print(f"  {name}={value}: {VARIABLES[name]}")
    if "OPENBLAS_CORETYPE" in found:
        advice.append("unset OPENBLAS_CORETYPE: NumPy finds the fastest kernels for this CPU by itself")


def _packages():
    """Prints which are there; returns those that most people will want and that are not."""
    print("\noptional packages")
    for name, purpose in PACKAGES.items():
        there = importlib.util.find_spec(name) is not None
        _line(name, there, f"{_version(name) if there else 'not installed'}: {purpose}")
    return [name for name in WORTH_HAVING if importlib.util.find_spec(name) is None]


def _version(module):
    for distribution in importlib.metadata.packages_distributions().get(module, ()):
        return importlib.metadata.version(distribution)
    return "installed"


def _line(name, good, text):
    print(f"  [{'x' if good else ' '}] {name:12} {text}".rstrip())

