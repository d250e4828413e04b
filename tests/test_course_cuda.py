"""Submissions in CUDA that mean harm, in the jail: what a kernel, a launcher or a source can do costs its own tasks
only, and the student reads why. Plain mistakes are in the assignment's wrong.toml, see test_course.py.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_course import by_task

from minigpt.course import grade, release
from minigpt.course.assignment import Assignment
from minigpt.emulator.launchers import signatures

ROOT = Path(__file__).parent.parent
A3 = ROOT / "tutorials" / "assignments" / "a3_cuda"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the jail is Linux's")


IN_A_KERNEL = {                                       # of task 1.1, whose launcher has 4 blocks of 128 threads
    "reads before its argument": ("y[0] = a[-5];", "out of bounds"),
    "writes where the emulator's own memory may be":
        ("for (long i = 0; i < 1l << 30; i += 64) ((volatile char*)&y)[i] = 1;", "task 1.1"),
    "writes nothing": ("", "is nan, expected"),
}
IN_THE_LAUNCHER = {
    "2^31 threads in a block": ("residual_add_kernel<<<1, 2147483647>>>(a, b, y, n);", "a block has at most 1024"),
    "exits": ("_exit(0);", "calls _exit(0)"),
    "takes all memory": ("for (char* p; cudaMalloc(&p, 1 << 26) == cudaSuccess;) cudaMemset(p, 1, 1 << 26); y[-9] = 0;",
                         "first.cu"),
    "does it all on the CPU, in the grader's file": ('if (FILE* f = fopen("/submission/adapters.py", "w")) y[0] = 0;',
                                                     "is nan, expected"),
}
FOR_EVER = {
    "hangs": "for (volatile int i = 0;;) i = i + 1;",
    "waits at barriers": "while (true) __syncthreads();",
}
AT_THE_TOP = {                                        # these cost all tasks of the file
    "a constructor that exits": ("struct S { S() { _exit(0); } } s;", "outside of a launcher"),
    "our kernels": ('#include "../../../../csrc/cuda/layernorm/row.cuh"', "row.cuh: No such file"),
    "our kernels, by their whole path": (f'#include "{ROOT}/csrc/cuda/layernorm/row.cuh"', "row.cuh: No such file"),
    "the users of this machine": ('#include "/etc/passwd"', "passwd: No such file"),
}


def hostile(target, top="", kernel=None, launcher=None):
    """The solution of A3, with something in its first file."""
    shutil.copytree(A3 / "student", target / "student")
    path = target / "student" / "first.cu"
    text = path.read_text()
    begin, end = (text.index(mark) for mark in ("  for (int i = blockIdx.x * blockDim.x", "  // END SOLUTION"))
    if kernel is not None:
        text = f"{text[:begin]}  {kernel}\n{text[end:]}"
    if launcher is not None:
        text = text.replace("residual_add_kernel<<<4, 128>>>(a, b, y, n);", launcher)
    path.write_text(text.replace("#include", f"#include <unistd.h>\n{top}\n#include", 1) if top or launcher else text)
    return target


@pytest.mark.parametrize("what", [*IN_A_KERNEL, *IN_THE_LAUNCHER])
def test_a_bad_kernel_or_launcher_costs_its_task_alone(what, isolation, tmp_path):
    where = "kernel" if what in IN_A_KERNEL else "launcher"
    code, said = (IN_A_KERNEL | IN_THE_LAUNCHER)[what]
    tests, problem = grade.run_tests(Assignment.load(A3), hostile(tmp_path / "of", **{where: code}), isolation,
                                     task="1.")
    assert not problem and by_task(tests)["1.1"] == (0, 5) and by_task(tests)["1.2"] == (9, 9), tests
    assert all(said in f"task {t['task']}{t['message']}" for t in tests if t["task"] == "1.1"), tests


@pytest.mark.slow
@pytest.mark.parametrize("what", FOR_EVER)
def test_what_never_ends_is_stopped_where_it_is(what, isolation, tmp_path):
    tests, problem = grade.run_tests(Assignment.load(A3), hostile(tmp_path / "of", kernel=FOR_EVER[what]), isolation,
                                     task="1.1")
    assert not problem and by_task(tests)["1.1"] == (0, 5)
    for t in tests:
        assert "stopped after 8 seconds, when thread" in t["message"] and "first.cu:" in t["message"], t


@pytest.mark.parametrize("what", AT_THE_TOP)
def test_a_bad_source_costs_its_tasks(what, isolation, tmp_path):
    code, said = AT_THE_TOP[what]
    tests, problem = grade.run_tests(Assignment.load(A3), hostile(tmp_path / "of", top=code), isolation, task="1.1")
    assert not problem and by_task(tests)["1.1"] == (0, 5)
    assert all(said in t["message"] for t in tests), tests


def test_launchers_that_cannot_be_called(isolation, tmp_path):
    path = hostile(tmp_path / "of") / "student" / "first.cu"
    text = path.read_text().replace("void residual_add(", "void add(")
    path.write_text(text.replace("void transpose(", "void transpose(int z, "))
    tests, _ = grade.run_tests(Assignment.load(A3), tmp_path / "of", isolation, task="1.")
    said = {"1.1": 'residual_add: student/first.cu defines no extern "C" function residual_add(...); it has '
                   "add(a, b, y, n), transpose(z, x, y, rows, columns)",
            "1.2": "transpose: transpose(z, x, y, rows, columns) takes 5 arguments, not 4; leave the launcher's "
                   "arguments as they were"}
    assert tests and all(t["message"] == said[t["task"]] for t in tests), tests


def test_what_students_get_has_the_launchers_of_the_solution(tmp_path):
    released = release.release(A3, tmp_path)
    for path in A3.glob("student/*.cu"):
        solved, given = ({name: (signature.parameters, signature.returns)
                          for name, signature in signatures(file.read_text(), file.name)[0].items()}
                         for file in (path, released / "student" / path.name))
        assert solved and solved == given


@pytest.mark.parametrize("folder", ["", "my work/"])
def test_a_submission_is_found_in_its_folder(folder, tmp_path):
    """adapters.py is no part of it: the grader has its own."""
    with zipfile.ZipFile(tmp_path / "of.zip", "w") as archive:
        archive.writestr(f"{folder}student/first.cu", "// mine")
    assert grade.files_of(Assignment.load(A3), tmp_path / "of.zip") == {"student/first.cu": b"// mine"}


ON_GPU = """
import sys; from pathlib import Path; folder = Path(sys.argv[1]); sys.path[:0] = [str(folder / "given"), sys.argv[2]]
import on_gpu; from minigpt.emulator.build import build

def emulated(source):
    path = folder / source
    path.write_text(path.read_text() + (folder / "given" / "gpu.cu").read_text())
    return build(path, checked=False, include=[folder])

on_gpu.RUNS, on_gpu.build = 2, emulated
on_gpu.main(rows=8, T=40)
"""


def test_the_script_for_a_gpu(tmp_path):
    """The emulator stands in for nvcc and the GPU."""
    folder = shutil.copytree(A3, tmp_path / "a3")
    done = subprocess.run([sys.executable, "-c", ON_GPU, folder, ROOT], capture_output=True, text=True)
    errors = [float(line.split()[1]) for line in done.stdout.splitlines()[1:]]
    assert done.returncode == 0 and len(errors) == 10 and max(errors) < 1e-5, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize("path", sorted(A3.glob("student/*.cu")), ids=lambda path: path.stem)
def test_the_same_files_are_cuda(path, tmp_path):
    """nvcc takes the solutions, and the stubs that students begin with."""
    for folder in (A3, release.release(A3, tmp_path)):
        subprocess.run(["nvcc", "-std=c++17", "-c", folder / "student" / path.name, "-o", tmp_path / "made.o"],
                       check=True)
