"""What of minigpt goes into the process where students' CUDA kernels run: the emulator, and nothing that knows an answer.

The emulator's own runtime is compiled here, once, and travels as object files: a submission pays for its own lines only.
"""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent
NEEDED = ("__init__.py", "files/atomic.py", "ops/bfloat16.py", "ops/cuda_arrays.py")        # by the emulator
CACHE = "cache"                           # the folder of object files, laid out as $XDG_CACHE_HOME is


def files() -> dict:
    """{name below minigpt/: path}. ImportError, saying why in one line, where there is no compiler."""
    from ..emulator import build

    build.ready()
    sources = build.sources()
    found = {name: PACKAGE / name for name in NEEDED}
    found |= {f"emulator/{path.name}": path for path in (PACKAGE / "emulator").glob("*.py")}
    found |= {f"csrc/{path.relative_to(sources)}": path for path in (sources / "emulator").rglob("*.*")}
    for made in build.runtime():
        found |= {f"{CACHE}/minigpt/emulator/{path.name}": path for path in (made, build.sum_file(made))}
    return found
