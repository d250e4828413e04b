"""What a student's process sees: their files, ours that they are given, the packages they may use, and nothing else.

All is copied or linked into one folder, readable by everybody; jail.py is told where it shall appear.
"""

import glob
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
HERE = Path(__file__).parent
BESIDE = ("worker.py", "wire.py", "native.py", "builder.py")
# What of minigpt the emulator needs; ops/ and its answers are not among it
EMULATOR = ("emulator/*.py", "files/atomic.py", "ops/bfloat16.py", "ops/cuda_arrays.py")
DISK = 64 * 2**20                         # bytes of files a submission may write
PATH = "/usr/local/bin:/usr/bin:/bin"     # in a jail


def lay_out(assignment, folder, scratch):
    """Fills the folder `scratch` with the files of the submission in `folder`, and all that its process needs."""
    for name in ("root", "worker", "packages", "submission", "tmp"):
        (scratch / name).mkdir()
    for name in BESIDE:
        shutil.copyfile(HERE / name, scratch / "worker" / name)
    for name, path in packages().items():
        (scratch / "packages" / name).symlink_to(path)
    if any(name.endswith(".cu") for name in assignment.sources):
        _emulator(scratch / "packages" / "minigpt")
    files = {name: folder / name for name in assignment.submission(folder)}
    files |= {name: assignment.folder / name for name in assignment.given}
    for name, path in files.items():
        (scratch / "submission" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, scratch / "submission" / name)
    for path in (scratch, *scratch.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    (scratch / "tmp").chmod(0o777)        # where it starts, and may write


def packages() -> dict:
    """{name: path} of what may be imported beside the standard library."""
    site = Path(importlib.util.find_spec("numpy").origin).parent.parent
    return {name: str(site / name) for name in ("numpy", "numpy.libs") if (site / name).is_dir()}


def _emulator(target):
    """A package minigpt that holds the emulator alone, its sources, and its runtime, compiled."""
    from ..emulator import build

    csrc = build.sources() / "emulator"
    files = {path.relative_to(PACKAGE): path for pattern in EMULATOR for path in PACKAGE.glob(pattern)}
    files |= {Path("csrc", "emulator", path.relative_to(csrc)): path for path in csrc.rglob("*") if path.is_file()}
    for path in build.runtime():
        files |= {Path("runtime", p.name): p for p in (path, build.checksum(path))}
    for name, path in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
    for folder in ("", "files", "ops"):
        (target / folder / "__init__.py").touch()


def configuration(scratch, isolation, assignment, does, seconds, environment=None):
    """What jail.py is told, for a process that does what `does` says, "adapters" or "builder"; see its enter() and
    limit(). `environment`: variables that are added, by whom memory is watched in other ways."""
    paths, placed = [f"{scratch}/{name}" for name in ("worker/worker.py", "submission", "packages")], {}
    if isolation == "namespaces":
        placed = {f"/{name}": f"{scratch}/{name}" for name in ("worker", "submission")}
        placed |= {f"/packages/{path.name}": os.path.realpath(path) for path in Path(scratch, "packages").iterdir()}
        paths = ["/worker/worker.py", "/submission", "/packages"]
    hidden = [str(PACKAGE), sysconfig.get_path("purelib", vars={"base": sys.base_prefix}),
              *glob.glob("/usr/lib/python3*/dist-packages"), *glob.glob("/usr/local/lib/python3*/*-packages")]
    variables = {"PATH": os.environ["PATH"] if isolation == "none" else PATH, "HOME": "/tmp", "LANG": "C.UTF-8",
                 "PYTHONDONTWRITEBYTECODE": "1"}
    variables |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    memory = assignment.memory_mb * 2**20
    return dict(isolation=isolation, root=f"{scratch}/root", visible=[sys.base_prefix], placed=placed, hidden=hidden,
                uid=40000 + 10000 * (does == "builder") + os.getpid() % 10000, disk=DISK, memory=memory,
                address_space=None if environment else memory, processes=assignment.processes, seconds=seconds,
                environment=variables | (environment or {}),
                command=[os.path.realpath(sys.executable), "-I", "-S", paths[0], does, *paths[1:]])
