"""Builds minigpt/_cuda.so, the kernels of csrc/cuda for a GPU, with NVIDIA's compiler where it is found.

Used by setup.py, by `minigpt doctor`, which says what was found, and by the tests. It needs Python alone. The library
is linked by the C++ compiler with the static CUDA runtime, never with the driver's library: it loads on machines
without a GPU too, and says there that there is none.

    MINIGPT_NVCC=/opt/cuda/bin/nvcc     the compiler to use, if it is not where one looks
    MINIGPT_CUDA=1                      build, for all GPUs that nvcc knows, though no GPU is seen here (0: never build)
    MINIGPT_CUDA_ARCHS="80 90"          build for these
"""

import glob
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")     # Turing, Ampere (2), Ada, Hopper, Blackwell (2)
FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fPIC")
NEEDS = re.compile(r"^// takes: .*; needs sm_(\w+)$", re.MULTILINE)      # in the header of a .cu file; see cuda_call.py


class NoNvcc(Exception):
    """Why the CUDA kernels cannot be built here, or need not be, in one line."""


def find() -> str:
    """The path of nvcc. NoNvcc where there is none."""
    folders = [os.environ[name].strip(":") + "/bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    wheels = glob.glob(sysconfig.get_path("purelib") + "/nvidia/*/bin")
    asked = os.environ.get("MINIGPT_NVCC")
    if asked and not shutil.which(asked):
        raise NoNvcc(f"MINIGPT_NVCC is {asked}, which cannot be run")
    places = [shutil.which(f"{folder}/nvcc") for folder in folders]
    places += [shutil.which("nvcc"), *(shutil.which(f"{folder}/nvcc") for folder in (*wheels, "/usr/local/cuda/bin"))]
    found = asked or next(filter(None, places), None)
    if not found:
        raise NoNvcc("no nvcc: not in $CUDA_HOME/bin, on the PATH, among pip's packages or in /usr/local/cuda; "
                     "pip install -e '.[nvcc]' brings one")
    return found


def _output(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoNvcc(f"{command[0]} does not run ({error})") from None
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines() or ["no word"]
        raise NoNvcc(f"{command[0]} fails: {next((line for line in lines if 'error' in line), lines[-1]).strip()}")
    return done.stdout


def version(nvcc) -> str:
    return re.search(r"release ([\d.]+)", _output(nvcc, "--version"))[1]


def offered(nvcc) -> list[str]:
    """The architectures that this nvcc compiles for: ["75", "80", ...]."""
    return [line.removeprefix("sm_") for line in _output(nvcc, "--list-gpu-code").split()]


def seen() -> list[str]:
    """The architectures of the GPUs in this machine."""
    try:
        listed = _output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    except NoNvcc:
        return []
    return sorted({number.replace(".", "") for number in re.findall(r"^\d+\.\d", listed, re.MULTILINE)}, key=int)


def wanted(nvcc) -> list[str]:
    """What to build for: what was asked for, or the GPUs seen. NoNvcc where that is nothing."""
    if os.environ.get("MINIGPT_CUDA") == "0":
        raise NoNvcc("MINIGPT_CUDA is 0")
    asked = re.findall(r"\w+", os.environ.get("MINIGPT_CUDA_ARCHS", ""))
    there = offered(nvcc)
    if asked:
        if unknown := [arch for arch in asked if arch not in there or not arch.isdigit()]:
            raise NoNvcc(f"MINIGPT_CUDA_ARCHS names {unknown[0]}, but nvcc {version(nvcc)} has {' '.join(there)}")
        return sorted(asked, key=int)
    if os.environ.get("MINIGPT_CUDA") == "1":
        return [arch for arch in ARCHITECTURES if arch in there]
    for arch in (gpus := seen()):
        if arch not in there:
            raise NoNvcc(f"the GPU here is sm_{arch}, which nvcc {version(nvcc)} does not know")
    if not gpus:
        raise NoNvcc("no GPU is seen here; MINIGPT_CUDA=1 builds them all the same")
    return gpus


def needs(source) -> str:
    """The least architecture that a .cu file is for."""
    found = NEEDS.search(Path(source).read_text(encoding="utf-8"))
    return found[1] if found else "75"


def targets(source, architectures) -> list[str]:
    """nvcc's options that choose the machine code of one file: for each architecture, and for the first and the last
    also in the form (PTX) that drivers of later GPUs translate. None where the file is for other GPUs."""
    least = needs(source)
    if least.endswith("a"):                                      # for that very architecture and no later one
        return [f"-gencode=arch=compute_{least},code=sm_{least}"] if least[:-1] in architectures else []
    suited = [arch for arch in architectures if int(arch) >= int(least)]
    portable = sorted({*suited[:1], *suited[-1:]}, key=int)
    return ([f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in suited]
            + [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in portable])


def runtime(nvcc) -> Path:
    """libcudart_static.a, in the folder that nvcc calls its top."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cu")
        source.touch()
        done = subprocess.run([nvcc, "--dryrun", "-c", source], capture_output=True, text=True)
    top = re.search(r"^#\$ TOP=(.*)$", done.stderr, re.MULTILINE)
    for place in ("lib64", "lib", "targets/*/lib"):
        for found in glob.glob(f"{top[1].strip()}/{place}/libcudart_static.a") if top else ():
            return Path(found)
    raise NoNvcc(f"{nvcc} has no libcudart_static.a beside it (the package nvidia-cuda-runtime)")


def compile(nvcc, source, made, *options):
    """One file to one object; returns what the compiler said. NoNvcc, in its words, if it does not compile."""
    command = [nvcc, *FLAGS, *options, "-c", str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoNvcc(f"{source} does not compile:\n{done.stderr.strip()}")
    return done.stderr


def build(csrc, target, temporary, *more):
    """Builds the library `target` from the folder csrc, keeping objects in the folder `temporary`, where those that are
    newer than all sources are used again; `more` are options for nvcc. Returns the architectures, and what nvcc said of
    each file that it compiled. NoNvcc where it cannot be done."""
    nvcc = find()
    architectures = wanted(nvcc)
    temporary = Path(temporary, "-".join(architectures))
    temporary.mkdir(parents=True, exist_ok=True)
    empty = temporary / "empty.cu"
    empty.touch()
    compile(nvcc, empty, temporary / "empty.o")                  # does the host compiler suit it? nvcc says if not
    folder, jobs = Path(csrc, "cuda"), []
    names = f'-DMINIGPT_CUDA_ARCHS="{" ".join(architectures)}"'
    newest_header = max(path.stat().st_mtime for path in folder.rglob("*.cuh"))
    for source in sorted([*folder.glob("*/*.cu"), folder / "gpu.cpp"]):
        options = [names] if source.suffix == ".cpp" else targets(source, architectures)
        made = temporary / f"{source.parent.name}-{source.stem}.o"
        if options:
            jobs.append((source, made, options))

    def run(job):
        source, made, options = job
        if not made.exists() or made.stat().st_mtime < max(source.stat().st_mtime, newest_header):
            return source, compile(nvcc, source, made, *options, *more)

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
        said = dict(filter(None, pool.map(run, jobs)))
    linker = os.environ.get("CXX") or shutil.which("c++") or "g++"
    _output(linker, "-shared", *(str(made) for _, made, _ in jobs), str(runtime(nvcc)), "-ldl", "-lrt", "-lpthread",
            "-o", str(target))
    return architectures, said
