"""What is the same everywhere: formatting, the rungs' names and headers, who may import torch."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt import nvcc, ops
from minigpt.ops import cuda_call, numpy_ops

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "csrc" / "cpp"
CUDA_KERNELS = ROOT / "csrc" / "cuda"
RUNG = re.compile(r"(?:(forward|backward)_)?(\d+)_(\w+)\.cpp")         # 3_threads.cpp, forward_2_online_softmax.cpp


def tracked(*patterns):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, check=True, text=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def tool(name):
    """A formatter, from this Python's environment or the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


def test_ruff():
    result = subprocess.run([tool("ruff"), "check", "--no-cache", "."], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_clang_format():
    files = tracked("*.cpp", "*.h")
    result = subprocess.run([tool("clang-format"), "--dry-run", "-Werror", *files], cwd=ROOT, capture_output=True,
                            text=True)
    assert files and result.returncode == 0, result.stderr


def rungs():
    """{(folder, direction or None): {name: number}} of the files that are rungs."""
    found = {}
    for path in KERNELS.glob("*/*.cpp"):
        if match := RUNG.fullmatch(path.name):
            direction, number, name = match.groups()
            found.setdefault((path.parent.name, direction), {})[name] = int(number)
    return found


def test_every_rung_is_a_file_and_every_file_a_rung():
    if reason := ops.available()["cpp"]:
        pytest.skip(reason)
    files, used = rungs(), set()
    for op, names in ops.load("cpp").kernels.items():
        folder, direction = op.rsplit("_", 1)
        key = (folder, direction) if (folder, direction) in files else (folder, None)
        assert set(names) <= set(files[key]), f"{op}: csrc/cpp/{folder} has files for {sorted(files[key])} only"
        numbers = [files[key][name] for name in names]
        assert numbers == sorted(numbers), f"{op}: the ladder is not in the order of the files' numbers"
        used |= {(*key, name) for name in names}
    assert used == {(*key, name) for key, names in files.items() for name in names}


HEADED = [*sorted(path for path in KERNELS.glob("*/*.cpp") if RUNG.fullmatch(path.name)),
          *sorted(CUDA_KERNELS.glob("*/*.cu"))]


@pytest.mark.parametrize("path", HEADED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_rungs_say_what_they_do_and_what_they_measured(path):
    header = re.match(r"(//.*\n)+", path.read_text())
    assert header and len(header[0].splitlines()) >= 3
    assert re.search(r"^// measured: ", header[0], re.MULTILINE)


def test_every_cuda_file_is_reached_and_understood():
    """Each has a launcher of an op; and where a line of its header begins as if to say what it takes, it says so in the
    form that is read."""
    found = cuda_call.find_rungs(vars(numpy_ops))
    assert {rung.path for rungs in found.values() for rung in rungs} == set(CUDA_KERNELS.glob("*/*.cu"))
    for path in CUDA_KERNELS.glob("*/*.cu"):
        said = [line for line in path.read_text().splitlines() if line.startswith("// takes")]
        assert len(said) <= 1 and all(cuda_call.TAKES.fullmatch(line) for line in said), path
        assert not said or nvcc.NEEDS.search(said[0]) or "needs" not in said[0], path
    for op, rungs in found.items():
        assert len({rung.signature.parameters for rung in rungs}) == 1, f"{op}: the rungs have different signatures"


def test_torch_is_imported_only_where_it_is_the_subject():
    allowed = ("minigpt/ops/torch_ops.py", "minigpt/scale/", "minigpt/bench/")
    for path in tracked("minigpt/*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(allowed):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                       [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            assert not any(module.split(".")[0] == "torch" for module in modules), f"{name}:{node.lineno}"


def test_no_paths_of_anybodys_machine():
    home = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/[\w.]")
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        assert not home.search(text), f"{path.relative_to(ROOT)}: {home.search(text)[0]}"
