"""What the emulator cannot take is refused before any work, in one line that names it; and the compiler's words are
brought into the order in which they are read."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from test_emulator import ADD, cu, needs_emulator

from minigpt import emulator
from minigpt.emulator import build, errors

__all__ = ["cu"]                          # a fixture


def one():
    return np.ones(8, np.float32)


# ---------------------------------------------------------------------------------------------------------------
# compile()


@pytest.mark.parametrize("path", [None, 3, b"add.cu", ["add.cu"]])
def test_a_path_is_a_name(path):
    with pytest.raises(TypeError, match=re.escape(f"compile: path is {path!r}, must be the name of a .cu file")):
        emulator.compile(path)


@pytest.mark.parametrize("options, kind, words", [
    (dict(include="abc"), TypeError, "compile: include is 'abc', must be a list of folders"),
    (dict(include=None), TypeError, "compile: include is None, must be a list of folders"),
    (dict(include=("/nonexist",)), ValueError, "compile: include has '/nonexist', which is no folder"),
    (dict(checked="no"), TypeError, "compile: checked is 'no', must be True or False")])
def test_options_of_compile(cu, options, kind, words):
    with pytest.raises(kind, match=re.escape(words)):
        emulator.compile(cu(ADD), **options)


def test_what_is_no_file_is_not_read(cu, tmp_path):
    """A folder, a device that never ends, a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe.cu")
    for path in (tmp_path, "/dev/zero", tmp_path / "pipe.cu"):
        with pytest.raises(ValueError, match="is a folder or a device, must be a file"):
            emulator.compile(path)
    for name in ("pipe.cu", "/dev/zero"):
        for text in (f'#include "{name}"\n' + ADD, f'#include "a.cuh"\n{ADD}'):
            cu(f'// nothing of "/dev/null"\n#include "{name}"\n', "a.cuh")
            with pytest.raises(emulator.CompileError, match=rf"(kernel.cu:1|a.cuh:2): #include of {name}, which is no"):
                emulator.compile(cu(text))
    with pytest.raises(FileNotFoundError):
        emulator.compile("")


@needs_emulator
def test_headers_lie_in_the_folders_that_are_named(tmp_path, cu):
    """What lies elsewhere is not shown in a compiler's error to whoever may not read it."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "n.cuh").write_text("#define N 3\n")
    add = 'extern "C" int n() { return N; }'
    for name in ("../two/n.cuh", str(tmp_path / "two" / "n.cuh")):
        path = cu(f'#include "{name}"\n{add}', "one/k.cu")
        with pytest.raises(emulator.CompileError, match="which lies neither beside the .cu file nor in a folder below"):
            emulator.compile(path)
        assert emulator.compile(path, include=[str(tmp_path / "two")]).n() == 3
    path = cu(f'/*\n#include "/etc/passwd"\n*/\n#include "n.cuh"\n{add}', "one/k.cu")
    assert emulator.compile(path, include=[tmp_path / "two"]).n() == 3


@needs_emulator
def test_any_name_of_a_file(tmp_path, cu):
    text = ADD.replace("if (i < n) ", "")
    path = cu(text, 'we"ird \\ n\'ame.cu')
    with pytest.raises(emulator.KernelError) as caught:
        emulator.compile(path).add(one(), one(), one(), 8)
    assert 'we"ird \\ n\'ame.cu:4' in str(caught.value)
    with pytest.raises(ValueError, match="has a line break in its name"):
        emulator.compile(cu(ADD, "two\nlines.cu"))


@needs_emulator
def test_a_compiler_that_takes_too_long_is_stopped(cu, monkeypatch):
    monkeypatch.setattr(build, "SECONDS", 0.01)
    with pytest.raises(emulator.CompileError, match="was stopped: it was not done after 0.01 seconds"):
        emulator.compile(cu(ADD + "// compiled by nobody yet, for no second\n"))


@pytest.mark.parametrize("name, words", [
    ("/nonexist", "$CXX is '/nonexist', and there is no such program"),
    ("g++ -O3", "$CXX is 'g++ -O3', and there is no such program: it must name a C++ compiler alone"),
    ("gcc", "$CXX is 'gcc', a compiler of C: the emulator needs one of C++"),
    ("/usr/bin/clang-14", "a compiler of C: ")])
def test_the_compiler_that_was_chosen_is_taken_or_refused(name, words):
    program = "import minigpt; print(minigpt.ops.available()['emulated'])"
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "CXX": name}, capture_output=True,
                          text=True, check=True)
    assert words in done.stdout and done.stdout.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------
# the compiler's words


@needs_emulator
def test_the_own_mistake_comes_first(cu):
    with pytest.raises(emulator.CompileError) as caught:
        emulator.compile(cu(ADD.replace("(a, b, c, n);", "(a, b, c);")))
    first, line = str(caught.value).splitlines()[:2]
    assert "kernel.cu:8:" in first and "error: " in first and "(a, b, c);" in line


@needs_emulator
def test_a_header_that_the_emulator_has_not(cu):
    with pytest.raises(emulator.CompileError) as caught:
        emulator.compile(cu("#include <cooperative_groups.h>\n" + ADD))
    first, second = str(caught.value).splitlines()[:2]
    assert first.startswith("the emulator has no cooperative groups: cooperative_groups.h") and "kernel.cu:1:" in second
    with pytest.raises(emulator.CompileError) as caught:
        emulator.compile(cu("#include <no_such_thing.h>\n" + ADD))
    assert "the emulator" not in str(caught.value)


def test_a_thousand_lines_are_cut():
    words = "\n".join(["In file included from k.cu:1,"] * 1000 + ["k.cu:1:1: error: nested", "    1 | here", "note"])
    lines = errors.readable(words, ["k.cu"]).splitlines()
    assert lines[:2] == ["k.cu:1:1: error: nested", "    1 | here"] and lines[-1] == "... and 947 more lines"
    assert len(lines) == errors.LINES + 1


# ---------------------------------------------------------------------------------------------------------------
# launchers, run() and watch()


@needs_emulator
def test_arguments_by_name(cu):
    kernels, c = emulator.compile(cu(ADD)), one()
    kernels.add(one(), one(), n=8, c=c)
    assert (c == 2).all()
    for arguments, named, words in (((c,), dict(x=c), "add(a, b, c, n) has no argument 'x'"),
                                    ((c,), dict(a=c), "add(a, b, c, n) is given a twice"),
                                    ((c,), dict(c=c), "add(a, b, c, n) is not given b, n")):
        with pytest.raises(TypeError, match=re.escape(words)):
            kernels.add(*arguments, **named)


@pytest.mark.parametrize("function", [3, "kernels.add", None])
def test_run_takes_a_launcher(function):
    with pytest.raises(TypeError, match=f"run: the first argument is {function!r}, must be a launcher"):
        emulator.run(function)
    assert str(emulator.run(int, "3")).startswith("No kernel was launched.")


@needs_emulator
def test_a_barrier_that_was_not_reached_was_not_left_out(cu):
    text = ADD.replace("  if (i < n)", "  __syncthreads();\n  if (i < n)")
    kernels = emulator.compile(cu(text))
    for skip, said in (("nofile.cu:3", True), ("kernel.cu:3", True), ("kernel.cu:4", False)):
        report = emulator.run(kernels.add, one(), one(), one(), 8, skip=skip)
        assert (f"no barrier or wait was reached at skip={skip!r}" in str(report)) == said == bool(report.notes)
