"""minigpt bench gpu: ready to run where there is a GPU, tried on the emulator where there is none."""

import importlib.util
import json
import shutil
import sys
import time
from functools import partial

import pytest

from minigpt import nvcc
from minigpt.bench import gpu, gpu_calls
from minigpt.cli import main
from minigpt.ops import available, load

has_torch = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not has_torch, reason="torch is not installed")
needs_emulator = pytest.mark.skipif(available()["emulated"] is not None, reason="the emulator does not run here")


@pytest.mark.skipif(bool(nvcc.seen()), reason="there is a GPU")
def test_where_there_is_no_gpu_it_says_so_in_one_line(tmp_path, capsys):
    assert main(["bench", "gpu", "--out", str(tmp_path / "gpu.json")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "no GPU" in said[0]
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """What all of it writes, at tiny sizes."""
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    assert main(["bench", "gpu", "--emulated", "--out", str(path)]) == 0, path.read_text()
    return path, json.loads(path.read_text())


@needs_torch
@needs_emulator
def test_dry_run(result):
    """Every rung of every op is timed and right, and nothing claims to be of a GPU."""
    _, result = result
    assert result["emulated"] and result["machine"]["gpu"] is None and "build" not in result
    assert len(result["mirror"]) == len(gpu.TRIED)
    assert all("passed" in answer["says"][-1] for answer in result["mirror"].values())
    assert all("calls in float32, bfloat16, float16" in answer["says"][-1] for answer in result["sanitize"].values())
    ops = load("emulated")
    timed = {(row["op"], rung, row["dtype"]) for row in result["rows"] for rung in row["ours"]}
    untimed = "linear_gelu_forward", "squared_norm"      # on a GPU the vendor's product; a number that is waited for
    in_16_bits = ("rmsnorm", "residual_layernorm")
    assert timed >= {(op, rung.name or op, "bfloat16" if op.startswith(in_16_bits) else rung.dtypes[0])
                     for op in ops._rungs for rung in ops._rungs[op] if op not in untimed}
    for row in result["rows"]:
        assert row["ours"] and row["failed"].keys() <= {"cuDNN"}, (row["work"], row["failed"])
        assert ("flops" in row) != ("bytes" in row)
        for variant, figures in (row["ours"] | row["peers"]).items():
            assert 0 < figures["q1"] <= figures["median"] <= figures["q3"]
            assert figures["error"] < (1e-5 if row["dtype"] == "float32" else 0.02), (row["work"], variant)
        for peer in row["must"].keys() | row["aim"].keys():
            assert peer in {"copy", "TFLOP/s", *row["peers"], *row["failed"]}, (row["work"], peer)


@needs_torch
@needs_emulator
def test_a_run_goes_on_where_it_was_stopped(result, tmp_path, capsys, monkeypatch):
    path, whole = result
    half = tmp_path / "half.json"
    half.write_text(json.dumps(whole | {"rows": whole["rows"][1:], "avoid": {}}))
    assert main(["bench", "gpu", "--emulated", "--out", str(half), "--only", "time"]) == 0
    got = json.loads(half.read_text())
    assert got["rows"][:-1] == whole["rows"][1:] and got["rows"][-1]["number"] == 0
    assert got["mirror"] == whole["mirror"]
    table = capsys.readouterr().out
    assert "no GPU: the times say nothing" in table and "attention forward" in table and "mirror: 3 of 3 ok" in table
    half.write_text(json.dumps(whole | {"sources": "others"}))
    assert main(["bench", "gpu", "--emulated", "--out", str(half)]) == 2
    assert "no results of these sources" in capsys.readouterr().err
    assert main(["bench", "gpu", "--emulated", "--out", str(half), "--only", "times"]) == 2
    assert "--only names 'times'" in capsys.readouterr().err


def test_a_variant_that_ends_the_process_is_left_out_of_the_next(tmp_path, monkeypatch):
    """A stand-in for the process: it dies in one variant, hangs in another, and comes to its end without them."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text("""
import json, os, sys, time
avoid = json.loads(sys.argv[4])["avoid"]
def say(**line): print(json.dumps(line), flush=True)
say(machine={"gpu": None, "copy": None})
for label, end in ("dies", lambda: os._exit(9)), ("hangs", lambda: time.sleep(60)):
    if label not in avoid:
        say(begin=label)
        end()
say(row={"number": 0, "work": "w", "ours": {}, "peers": {}, "failed": avoid})
say(over=True)
""")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(gpu, "LIMIT", 3)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: True)
    result, kept = {}, []
    gpu.measure("emulated", result, kept.append)
    assert result["avoid"].keys() == {"dies", "hangs"}
    assert "code 9" in result["avoid"]["dies"] and "nothing came back for 3 s" in result["avoid"]["hangs"]
    assert [row["failed"] for row in result["rows"]] == [result["avoid"]] and kept[-1] == "w"
    assert not gpu.succeeded(result)


@needs_emulator
def test_every_rung_is_called_under_the_sanitizers():
    ops = load("emulated")
    for op in ops._rungs:
        for kernel in ops.kernels.get(op, (None,)):
            taken = {dtype for rung in ops._rungs[op] if kernel in (None, rung.name) for dtype in rung.dtypes}
            assert set(gpu_calls.call_rung(ops, op, kernel, every=1000)) == taken, (op, kernel)


@pytest.fixture
def architecture():
    """The newest that nvcc compiles for."""
    try:
        return max(filter(str.isdigit, nvcc.offered(nvcc.find())), key=int)
    except nvcc.NoNvcc as reason:
        pytest.skip(str(reason))


def test_build(tmp_path, monkeypatch, architecture):
    """On a project with one small kernel."""
    (tmp_path / "minigpt").mkdir()
    (tmp_path / "csrc" / "cuda" / "op").mkdir(parents=True)
    shutil.copy(gpu.REPOSITORY / "csrc" / "cuda" / "gpu.cpp", tmp_path / "csrc" / "cuda")
    (tmp_path / "csrc" / "cuda" / "op" / "op.cuh").touch()
    (tmp_path / "csrc" / "cuda" / "op" / "op.cu").write_text("__global__ void kernel() {}\n")
    monkeypatch.setattr(gpu, "REPOSITORY", tmp_path)
    monkeypatch.setenv("MINIGPT_CUDA_ARCHS", architecture)
    assert gpu.build()["architectures"] == [architecture]
    assert (tmp_path / "minigpt" / "_cuda.so").exists()


def test_reached():
    def figures(seconds, error):
        return {"median": seconds, "error": error}

    row = {"ours": {"a": figures(2.0, 3e-3), "b": figures(1.0, None)}, "flops": 4e12, "bytes": 10,
           "peers": {"FA2": figures(1.0, 1e-3), "cuDNN": figures(0.5, 2e-3)}}
    assert gpu.reached(row, copy=20) == {
        "a": {"FA2": 0.5, "cuDNN": 0.25, "TFLOP/s": 2.0, "copy": 0.25, "error": 1.5},
        "b": {"FA2": 1.0, "cuDNN": 0.5, "TFLOP/s": 4.0, "copy": 0.5},
    }
    assert "copy" not in gpu.reached(row, copy=None)["a"]


def test_the_table_names_what_falls_short():
    row = {"work": "attention", "dtype": "bfloat16", "must": {"FA2": 0.7}, "targets_of": None,
           "failed": {"cuDNN": "no such backend"},
           "ours": {"slow": {"median": 2.0, "queued": False}, "fast": {"median": 1.0, "queued": True}},
           "reached": {"slow": {"FA2": 0.6}, "fast": {"FA2": 0.8}}}
    result = {"machine": {"gpu": "H200"}, "date": "2026-11-22", "mirror": {"test gelu": {"ok": True, "says": []}},
              "sanitize": {"memcheck gelu": {"ok": False, "says": ["Invalid read"]}}, "rows": [row],
              "avoid": {"rope": "hung"}}
    lines = gpu.terminal(result).splitlines()
    assert "H200" in lines[0] and any("cuDNN does not run: no such" in line for line in lines)
    assert [line for line in lines if "FAILED" in line] == ["  FAILED memcheck gelu: Invalid read"]
    assert "mirror: 1 of 1 ok" in lines and "not timed: rope: hung" in lines
    assert [line.split()[0] for line in lines if "below FA2" in line] == ["slow"]
    assert [line.split()[0] for line in lines if "time that Python takes" in line] == ["slow"]
    assert "below" not in gpu.terminal(result | {"rows": [row | {"targets_of": "fast"}]})
    assert not gpu.succeeded(result)


def test_a_result_is_of_all_the_sources_that_it_depends_on():
    names = {file.relative_to(gpu.REPOSITORY).as_posix() for file in gpu.hashed()}
    assert names >= {"csrc/cuda/gpu.cpp", "csrc/cuda/numbers.cuh", "csrc/cuda/gelu/gelu.cu", "minigpt/nvcc.py",
                     "minigpt/bench/gpu_rows.py", "tests/test_mirror.py",
                     "minigpt/ops/cuda_call.py", "minigpt/ops/cuda_ops.py", "minigpt/ops/gpu.py",
                     "minigpt/ops/cases.py", "minigpt/ops/budget.py", "minigpt/ops/budget16.py"}


class Clock:
    """A GPU of torch's, as the timer sees it: it sleeps so many cycles, then comes to the calls, a cycle each."""
    now = slept_until = 0

    def Event(self, enable_timing):
        return ClockEvent(self)

    def _sleep(self, cycles):
        self.slept_until = self.now + cycles


class ClockEvent:
    def __init__(self, clock):
        self.clock = clock

    def record(self):
        self.at = max(self.clock.now, self.clock.slept_until)

    def query(self):
        return self.clock.now >= self.at

    def synchronize(self):
        """Nothing is waited for."""

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@needs_torch
@pytest.mark.parametrize("takes, queued", [(0.5, True), (3, True), (1000, False)])
def test_a_queue_that_runs_dry_is_noticed(monkeypatch, takes, queued):
    """`takes`: how long Python needs for a call, in units of the sleep that is meant to hide it."""
    from minigpt.bench import gpu_time

    clock = Clock()

    def call():
        clock.now += takes * gpu_time.SLEEP

    monkeypatch.setattr(gpu_time.torch, "cuda", clock)
    took, in_time = gpu_time._block(call, 5, on_gpu=True)
    assert in_time == queued and (took == 0) == queued


@needs_torch
def test_times_are_in_order():
    from minigpt.bench.gpu_time import time_calls

    times = time_calls({"slow": partial(time.sleep, 0.02), "fast": partial(time.sleep, 0.001)}, on_gpu=False)
    assert 0.02 <= times["slow"]["median"] and 0.001 <= times["fast"]["median"] < 0.02
