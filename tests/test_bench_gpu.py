"""minigpt bench gpu: ready to run where there is a GPU, tried on the emulator where there is none."""

import importlib.util
import json
import shutil
import time
from functools import partial

import pytest

from minigpt import nvcc
from minigpt.bench import gpu, gpu_calls
from minigpt.cli import main
from minigpt.ops import available, load

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
needs_emulator = pytest.mark.skipif(available()["emulated"] is not None, reason="the emulator does not run here")


@needs_torch
@pytest.mark.skipif(bool(nvcc.seen()), reason="there is a GPU")
def test_where_there_is_no_gpu_it_says_so_in_one_line(tmp_path, capsys):
    assert main(["bench", "gpu", "--out", str(tmp_path / "gpu.json")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "no GPU" in said[0]
    assert not list(tmp_path.iterdir())


@needs_torch
@needs_emulator
def test_dry_run(tmp_path, capsys):
    """All of it, at tiny sizes: every rung of the ladders is timed and right, and nothing claims to be of a GPU."""
    path = tmp_path / "gpu.json"
    assert main(["bench", "gpu", "--emulated", "--out", str(path)]) == 0, path.read_text()
    result = json.loads(path.read_text())
    assert result["emulated"] and result["machine"]["gpu"] is None and "build" not in result
    assert result["mirror"]["ok"] and "passed" in result["mirror"]["says"][-1]
    timed = {(row["op"], rung) for row in result["rows"] for rung in row["ours"]}
    ops = load("emulated")
    ladders = ("attention_forward", "attention_backward", "layernorm_forward", "layernorm_backward", "linear_forward")
    assert timed >= {(op, rung) for op in ladders for rung in ops.kernels[op]}
    for row in result["rows"]:
        assert row["ours"] and row["failed"].keys() <= {"cuDNN"}, row["work"]
        for rung, figures in row["ours"].items():
            assert 0 < figures["q1"] <= figures["median"] <= figures["q3"]
            assert figures["error"] < (1e-5 if row["dtype"] == "float32" else 0.02), (row["work"], rung)
        for peer in row["must"].keys() | row["aim"].keys():
            assert peer in {"copy", "TFLOP/s", *row["peers"], *row["failed"]}, (row["work"], peer)
    table = capsys.readouterr().out
    assert "emulated: the times say nothing" in table and "attention backward" in table


@needs_emulator
def test_every_rung_is_called_under_the_sanitizers():
    ops = load("emulated")
    called = set(gpu_calls.call_all(ops, every=1000))                 # the first case of each op
    assert {op for op, _, _ in called} == set(ops._rungs)
    assert called >= {(rung.op, rung.name, dtype) for op in ops.kernels for rung in ops._rungs[op]
                      for dtype in rung.dtypes}


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

    entry = {"ours": {"a": figures(2.0, 3e-3), "b": figures(1.0, None)}, "flops": 4e12, "bytes": 10,
             "peers": {"FA2": figures(1.0, 1e-3), "cuDNN": figures(0.5, 2e-3)}}
    assert gpu.reached(entry, copy=20) == {
        "a": {"FA2": 0.5, "cuDNN": 0.25, "TFLOP/s": 2.0, "copy": 0.25, "error": 1.5},
        "b": {"FA2": 1.0, "cuDNN": 0.5, "TFLOP/s": 4.0, "copy": 0.5},
    }
    assert "copy" not in gpu.reached(entry, copy=None)["a"]


def test_the_table_names_what_falls_short():
    row = {"work": "attention", "dtype": "bfloat16", "must": {"FA2": 0.7}, "failed": {"cuDNN": "no such backend"},
           "ours": {"slow": {"median": 2.0}, "fast": {"median": 1.0}},
           "reached": {"slow": {"FA2": 0.6}, "fast": {"FA2": 0.8}}}
    fine = {"ok": True, "says": ["3 passed"]}
    lines = gpu.terminal({"machine": {"gpu": "H200"}, "date": "2026-11-22", "mirror": fine,
                          "sanitizers": {"memcheck": {"ok": False, "says": []}}, "rows": [row]}).splitlines()
    assert "H200" in lines[0] and any("cuDNN does not run: no such" in line for line in lines)
    assert [line for line in lines if "FAILED" in line] == ["memcheck: FAILED  "]
    assert [line.split()[0] for line in lines if "below FA2" in line] == ["slow"]


def test_times_are_in_order():
    times = gpu.time_calls({"slow": partial(time.sleep, 0.02), "fast": partial(time.sleep, 0.001)})
    assert 0.02 <= times["slow"]["median"] and 0.001 <= times["fast"]["median"] < 0.02
