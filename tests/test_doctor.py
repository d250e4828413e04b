"""minigpt doctor: the report tells the truth, and ends with what to do."""

import subprocess
import sys

import numpy as np
import pytest

from minigpt import nvcc
from minigpt.cli import main
from minigpt.commands import doctor
from minigpt.commands.doctor import arithmetic_checks, compiler_name
from minigpt.ops import available, load, numpy_ops

needs_cpp = pytest.mark.skipif(available()["cpp"] is not None, reason="the C++ kernels are not built")


@needs_cpp
def test_report(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "WORTH_HAVING", ("json",))
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    extension = load("cpp")._C
    assert f"threads: {extension.num_threads()}, by {extension.threading}" in out
    assert next(line for line in out.splitlines() if "in use" in line).split()[1] == extension.isa
    assert "WRONG" not in out and out.rstrip().endswith("Nothing is missing.")


@needs_cpp
def test_what_is_worth_having_is_named(capsys, monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(doctor, "WORTH_HAVING", ("json", "no_such_package"))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("Worth having: pip install no_such_package\n") and "Nothing is missing" not in out


def test_cuda_is_told_but_never_asked_for(capsys, monkeypatch):
    """What stands in the way of the CUDA kernels is said in a line; it is nobody's fault."""
    def missing():
        raise nvcc.NoNvcc("no nvcc: nowhere")

    monkeypatch.setattr(nvcc, "find", missing)
    monkeypatch.setattr(nvcc, "seen", lambda: ["90"])
    main(["doctor"])
    report, _, advice = capsys.readouterr().out.partition("What to do next:")
    assert "GPUs here: sm_90" in report and "not to be built: no nvcc: nowhere" in report and "nvcc" not in advice
    monkeypatch.setattr(nvcc, "find", lambda: "/opt/nvcc")
    monkeypatch.setattr(nvcc, "version", lambda path: "13.0")
    monkeypatch.setattr(nvcc, "offered", lambda path: ["80", "90"])
    main(["doctor"])
    out = capsys.readouterr().out
    assert "nvcc 13.0, /opt/nvcc: compiles for sm_80 sm_90" in out and "builds the kernels for: sm_90" in out


def test_the_compiler_has_a_name():
    assert compiler_name("13.2.1 20230801") == "g++ 13.2.1 20230801"
    assert compiler_name("Debian Clang 14.0.6") == "Debian Clang 14.0.6"


@needs_cpp
def test_a_slow_setting_is_named(capsys, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "OPENBLAS_CORETYPE=Haswell" in out
    assert "unset OPENBLAS_CORETYPE" in out.partition("What to do next:")[2]


def test_without_the_kernels():
    """A machine where nothing was built: the report says so, says what to do, and there is no traceback."""
    program = "import sys; sys.modules['minigpt._cpp_base'] = None; from minigpt import cli; cli.main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not done.stderr
    assert "[ ] cpp" in done.stdout and "pip install -e ." in done.stdout.partition("What to do next:")[2]


def test_arithmetic_holds_in_numpy():
    with np.errstate(all="ignore"):
        assert all(arithmetic_checks(numpy_ops).values())


@needs_cpp
def test_arithmetic_holds_in_the_kernels():
    checks = arithmetic_checks(load("cpp"))
    assert all(checks.values()), [name for name, good in checks.items() if not good]


def test_fast_math_would_be_noticed():
    """A backend that turns NaN into numbers, as -ffast-math lets a compiler do."""
    class Fast:
        def __getattr__(self, name):
            def call(*args, **options):
                results = getattr(numpy_ops, name)(*map(np.nan_to_num, args), **options)
                return tuple(map(np.nan_to_num, results)) if isinstance(results, tuple) else np.nan_to_num(results)
            return call

    for name, good in arithmetic_checks(Fast()).items():
        assert good == ("NaN" not in name and "lse" not in name), name
