"""minigpt diff: it says that backends agree where they do, and names the operation that is wrong where they do not."""

import types

import numpy as np
import pytest

from minigpt.cli import main
from minigpt.commands.diff import SHAPES, compare
from minigpt.ops import available, load, numpy_ops

needs_cpp = pytest.mark.skipif(available()["cpp"] is not None, reason="the C++ kernels are not built")


def patched(ops, **functions):
    """A copy of a backend's module with some functions replaced."""
    module = types.ModuleType(ops.__name__)
    module.__dict__.update({**vars(ops), **functions})
    return module


@needs_cpp
def test_backends_agree(capsys):
    assert main(["diff"]) == 0
    assert "numpy and cpp agree" in capsys.readouterr().out


def test_every_operation_of_the_model_is_compared():
    called = {op for config in SHAPES.values() for op, *_ in compare(config, numpy_ops, numpy_ops)}
    assert called == {"linear_gelu_forward", "gelu_backward", *(
        f"{op}_{way}" for way in ("forward", "backward")
        for op in ("embedding", "layernorm", "residual_layernorm", "rmsnorm", "linear", "rope", "attention", "swiglu",
                   "cross_entropy"))}


def first_over(config, a, b):
    return next(((op, weights) for op, weights, _, verdicts in compare(config, a, b)
                 if not all(verdict.ok for verdict in verdicts)), None)


def attention_that_sees_one_key_too_few(q, k, v, causal=True, scale=None, *, kernel=None, out=None):
    return load("cpp").attention_forward(q, k[:, :, :-1], v[:, :, :-1], causal, scale, out=out)


def linear_backward_without_the_last_row(dy, x, weight, *, kernel=None, grads=None, accumulate=False):
    dy = dy.copy()
    dy[-1, -1] = 0
    return load("cpp").linear_backward(dy, x, weight, grads=grads, accumulate=accumulate)


def rope_of_nan(x, cos, sin, *, out=None):
    out[...] = np.nan
    return out


@needs_cpp
@pytest.mark.parametrize("shape, bug, culprit", [
    ("GPT-2's shape", dict(attention_forward=attention_that_sees_one_key_too_few), ("attention_forward", "")),
    ("GPT-2's shape", dict(linear_backward=linear_backward_without_the_last_row), ("linear_backward", "wte")),
    ("Llama's shape", dict(rope_forward=rope_of_nan), ("rope_forward", "")),
], ids=["attention", "linear", "rope"])
def test_a_planted_bug_is_named(shape, bug, culprit):
    assert first_over(SHAPES[shape], numpy_ops, load("cpp")) is None
    assert first_over(SHAPES[shape], numpy_ops, patched(load("cpp"), **bug)) == culprit


@needs_cpp
def test_exit_code_and_last_line(capsys, monkeypatch):
    monkeypatch.setattr(load("cpp"), "rope_forward", rope_of_nan)
    assert main(["diff"]) == 1
    out = capsys.readouterr().out
    assert "<- over" in out
    assert out.splitlines()[-1].startswith("The first operation over its budget: Llama's shape, call 4, on cpp: rope")
