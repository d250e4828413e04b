"""Builds the package and its C++ kernels.

The same sources are compiled once per instruction set, each time into a module of its own (minigpt._cpp_base,
_cpp_avx2, _cpp_avx512); `minigpt.ops.cpp_ops` imports the best one that the CPU at hand can run. So one build serves
every machine that shares the disk, and no -march=native is needed. Where there is no C++ compiler the install succeeds
all the same, and NumPy serves.

The CUDA kernels become minigpt/_cuda.so where there are a GPU and nvcc (minigpt/nvcc.py says how to ask for more);
without, the install succeeds too. Their sources are installed with the package, since the emulator compiles them.
"""

import os
import platform
import runpy
import shutil
import sys
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

X86_64 = platform.machine().lower() in ("x86_64", "amd64")
ISA_FLAGS = {"base": []}
if X86_64 and sys.platform != "win32":
    ISA_FLAGS["avx2"] = ["-march=x86-64-v3"]
    ISA_FLAGS["avx512"] = ["-march=x86-64-v4", "-mprefer-vector-width=512"]

# No fast-math: NaN and infinity mean what they say. Contraction to FMA is allowed (-std=c++17 would switch it off).
FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-Wall", "-Wno-psabi"]
OPENMP = ["-fopenmp"] if sys.platform.startswith("linux") else []  # elsewhere csrc/cpp/parallel.cpp has its own threads

SOURCES = sorted(glob("csrc/bindings/*.cpp") + glob("csrc/cpp/**/*.cpp", recursive=True))
HEADERS = sorted(glob("csrc/**/*.h", recursive=True))


def needs_recompile(obj, source):
    """An object is stale when its source or any header is newer."""
    newest = max(os.path.getmtime(path) for path in [source, *HEADERS])
    return not os.path.exists(obj) or os.path.getmtime(obj) < newest


class BuildKernels(build_ext):
    """Each module is built in a folder of its own, since their objects have the same names; one that cannot be built is
    left out."""

    def run(self):
        super().run()
        package = Path("minigpt" if self.inplace or self.editable_mode else f"{self.build_lib}/minigpt")
        try:
            build = runpy.run_path("minigpt/nvcc.py")["build"]
            built, _ = build("csrc", package / "_cuda.so", f"{self.build_temp}/cuda")
            print(f"minigpt: the CUDA kernels were built for sm_{', sm_'.join(built)}", file=sys.stderr)
        except Exception as reason:       # as above; mostly that there is no GPU, in the words of nvcc.py
            print(f"minigpt: the CUDA kernels were not built: {reason}", file=sys.stderr)

    def build_extension(self, ext):
        build_temp, self.build_temp = self.build_temp, str(Path(self.build_temp) / ext.name)
        try:
            super().build_extension(ext)
        except Exception as error:  # a missing or broken compiler shows itself in many ways
            if ext.name.endswith("_base"):  # the plainest: the others will hardly fare better
                print(f"minigpt: the C++ kernels were not built, NumPy will serve instead ({error})", file=sys.stderr)
            self.extensions = [other for other in self.extensions if other is not ext]
        self.build_temp = build_temp


class CopySources(build_py):
    """Takes csrc/cuda and csrc/emulator along into the package."""

    def run(self):
        super().run()
        for folder in ("cuda", "emulator") if not self.editable_mode else ():
            shutil.copytree(f"csrc/{folder}", f"{self.build_lib}/minigpt/csrc/{folder}", dirs_exist_ok=True)


ParallelCompile("MAX_JOBS", needs_recompile=needs_recompile).install()
setup(
    name="minigpt",
    version="0.1.0",
    description="The GPT you can take apart: NumPy, C++ and CUDA under one name",
    packages=find_packages(include=["minigpt", "minigpt.*"]),
    package_data={"minigpt.emulator.demo": ["*.cu"]},
    python_requires=">=3.10",
    install_requires=["numpy>=1.26"],
    extras_require={
        "all": ["regex", "tqdm", "matplotlib", "tomli; python_version < '3.11'"],
        "torch": ["torch>=2.9", "safetensors"],  # the twin; safetensors for the checkpoints of several ranks
        "nvcc": [
            "nvidia-cuda-nvcc", "nvidia-cuda-runtime", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-cccl",
        ],
        "course": ["pytest", "matplotlib", "tomli; python_version < '3.11'"],  # for students and graders
        "dev": [
            "pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "clang-format==23.1.5", "pybind11>=3.0",
            "setuptools>=77", "jupytext", "nbclient", "ipykernel",
            "torch==2.13.0", "transformers", "tokenizers", "tiktoken", "safetensors",  # the outside judges
        ],
    },
    entry_points={"console_scripts": ["minigpt = minigpt.cli:main"]},
    ext_modules=[
        Pybind11Extension(
            f"minigpt._cpp_{isa}",
            SOURCES,
            include_dirs=["csrc/cpp"],
            depends=HEADERS,
            cxx_std=17,
            define_macros=[("MINIGPT_MODULE", f"_cpp_{isa}")],
            extra_compile_args=[*FLAGS, *flags, *OPENMP],
            extra_link_args=OPENMP,
        )
        for isa, flags in ISA_FLAGS.items()
    ],
    cmdclass={"build_ext": BuildKernels, "build_py": CopySources},
)
