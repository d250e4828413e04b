"""The tests are tested: every bug of planted_bugs.py, put into a copy of the project, must fail test_mirror.py.

A few run every time, all of them with the slow tests: pytest -m slow -s tests/test_planted_bugs.py also says which test
caught each.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from planted_bugs import BUGS, CUDA

ROOT = Path(__file__).parent.parent
OBJECTS = ROOT / "build" / "planted_bugs"
MODULE = "_cpp_base" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
OFTEN = {5, 11, 18, 23, 29, 36, 41, 48, 55}     # NumPy: heads, variance, tokens, softmax; three in C++, two in CUDA

pytestmark = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")


def compile_cpp(root, source, target):
    """One source file, for the plainest instruction set; the bindings are not what is tested, so not optimised."""
    import pybind11
    level = "-O0" if "bindings" in source.parts else "-O1"
    subprocess.run([COMPILER, level, "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", "-w", "-c", source,
                    "-o", target, "-DMINIGPT_MODULE=_cpp_base", f"-I{root / 'csrc' / 'cpp'}",
                    f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"], check=True)


@pytest.fixture(scope="session")
def objects():
    """{source: object} of the whole backend without bugs, kept from run to run."""
    OBJECTS.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "csrc").glob("bindings/*.cpp")) + sorted((ROOT / "csrc" / "cpp").rglob("*.cpp"))
    newest_header = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*.h"))
    made = {source: OBJECTS / ("-".join(source.relative_to(ROOT).parts) + ".o") for source in sources}
    stale = [source for source, target in made.items()
             if not target.exists() or target.stat().st_mtime < max(newest_header, source.stat().st_mtime)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source: compile_cpp(ROOT, source, made[source]), stale))
    return made


def copy_of_project(folder, objects, bug=None):
    """A copy with the bug in it, its C++ linked from the objects and what the bug changed."""
    unbuilt = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(ROOT / "minigpt", folder / "minigpt", ignore=unbuilt)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "test_mirror.py", folder / "tests")
    linked = dict(objects)
    if bug:
        broken = folder / bug.file
        broken.write_text((ROOT / bug.file).read_text().replace(bug.old, bug.new))
        if bug.file.startswith(CUDA):
            return folder                 # compiled when it is called
        if bug.file.startswith("csrc"):
            folder_of_op = folder / "csrc" / "cpp" / bug.op.removesuffix("_forward").removesuffix("_backward")
            for source in [broken] if broken.suffix == ".cpp" else sorted(folder_of_op.glob("*.cpp")):
                linked[ROOT / source.relative_to(folder)] = source.with_suffix(".o")
                compile_cpp(folder, source, source.with_suffix(".o"))
    subprocess.run([COMPILER, "-shared", "-pthread", *linked.values(), "-o", folder / "minigpt" / MODULE], check=True)
    return folder


def run_mirror(folder, ops):
    return subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "tests/test_mirror.py",
                           "-k", ops], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug_can_be_planted(bug):
    assert (ROOT / bug.file).read_text().count(bug.old) == 1


@pytest.mark.parametrize("bug", [pytest.param(bug, id=bug.name, marks=[] if i in OFTEN else [pytest.mark.slow])
                                 for i, bug in enumerate(BUGS)])
def test_bug_is_caught(bug, objects, tmp_path, record_property):
    only = f"{bug.op} and emulated" if bug.file.startswith(CUDA) else bug.op
    result = run_mirror(copy_of_project(tmp_path, objects, bug), only)
    caught = re.search(r"(?:^FAILED tests/test_mirror.py::|Fatal Python error: )(\S+)", result.stdout, re.MULTILINE)
    assert result.returncode and caught, f"{bug.name}: not caught\n{result.stdout[-2000:]}"
    reason = re.search(r"^E +(?:Failed: |AssertionError: )?(.*)", result.stdout, re.MULTILINE)
    print(f"\n{bug.name}:\n    caught by {caught[1]}: {reason[1] if reason else ''}")
    record_property("caught by", caught[1])


@pytest.mark.parametrize("ops", [" or ".join(sorted({BUGS[i].op for i in OFTEN})),
                                 pytest.param("test", marks=pytest.mark.slow)], ids=["often", "everything"])
def test_the_copy_without_bugs_passes(ops, objects, tmp_path):
    result = run_mirror(copy_of_project(tmp_path, objects), ops)
    assert result.returncode == 0, result.stdout[-3000:]
