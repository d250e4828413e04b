"""The tests that you have. More are run when your work is graded, of other sizes and other numbers: see README.md.

Nothing in these numbers has mean 0, and no weight is 1: with dy = 1 and weight = 1 the gradient of a layernorm is about
0, whatever the code does.
"""

import numpy as np
import pytest

from minigpt.course.judging import agrees
from minigpt.ops import numpy_ops as spec
from minigpt.ops.cases import numbers, parameters


@pytest.mark.task("1.1", points=2, look="x @ weight.T: which axis of the weight is the outputs?")
def test_linear_forward(adapters, rng):
    agrees(adapters, "linear_forward", x=numbers(rng, 3, 5, 17), weight=parameters(rng, 9, 17),
           bias=parameters(rng, 9))


@pytest.mark.task("1.2", points=4, look="the sums over all leading axes, in dweight and dbias")
def test_linear_backward(adapters, rng):
    agrees(adapters, "linear_backward", dy=numbers(rng, 3, 5, 9), x=numbers(rng, 3, 5, 17),
           weight=parameters(rng, 9, 17))


@pytest.mark.task("2.1", points=2, look="the cube, and the two constants")
def test_gelu_forward(adapters, rng):
    agrees(adapters, "gelu_forward", x=numbers(rng, 4, 33))


@pytest.mark.task("2.2", points=4, look="the product rule: x stands in front of the bracket and inside u")
def test_gelu_backward(adapters, rng):
    agrees(adapters, "gelu_backward", dy=numbers(rng, 4, 33), x=numbers(rng, 4, 33))


@pytest.mark.task("3.1", points=3, look="mean and variance are those of a row; eps is added to the variance")
def test_layernorm_forward(adapters, rng):
    agrees(adapters, "layernorm_forward", x=numbers(rng, 2, 7, 48), weight=parameters(rng, 48),
           bias=parameters(rng, 48), eps=1e-5)


def norm_backward(rng, *shape, mean=0.5):
    C = shape[-1]
    x, weight = numbers(rng, *shape, mean=mean), parameters(rng, C)
    _, mean, rstd = spec.layernorm_forward(x, weight)
    return dict(dy=numbers(rng, *shape), x=x, weight=weight, mean=mean, rstd=rstd)


@pytest.mark.task("3.2", points=6, look="the two terms that come through the mean and through rstd")
def test_layernorm_backward(adapters, rng):
    agrees(adapters, "layernorm_backward", **norm_backward(rng, 2, 7, 48))


def loss(rng, *shape, scale=1.0):
    logits, targets = numbers(rng, *shape) * np.float32(scale), rng.integers(0, shape[-1], shape[:-1])
    targets[..., 1] = -100
    return dict(logits=logits, targets=targets)


@pytest.mark.task("4.1", points=3, look="the rows whose target is ignore_index, and the sign")
def test_cross_entropy_forward(adapters, rng):
    agrees(adapters, "cross_entropy_forward", **loss(rng, 2, 6, 31))


@pytest.mark.task("4.2", points=4, look="the 1 that is taken from the target's probability; rows that are ignored")
def test_cross_entropy_backward(adapters, rng):
    given = loss(rng, 2, 6, 31)
    agrees(adapters, "cross_entropy_backward", dloss=0.1, lse=spec.cross_entropy_forward(**given)[1], **given)


def qkv(rng, B, H, Tq, Tk, D):
    return dict(q=numbers(rng, B, H, Tq, D), k=numbers(rng, B, H, Tk, D), v=numbers(rng, B, H, Tk, D))


@pytest.mark.task("5.1", points=5, look="scale, and which axis the softmax runs along")
def test_attention_of_all_keys(adapters, rng):
    agrees(adapters, "attention_forward", causal=False, **qkv(rng, 2, 3, 9, 9, 16))


@pytest.mark.task("5.1", points=3, look="the mask: a query sees its own key, and those before it")
def test_attention_is_causal(adapters, rng):
    agrees(adapters, "attention_forward", causal=True, **qkv(rng, 2, 3, 9, 9, 16))


@pytest.mark.task("5.2", points=10, look="delta, and where scale comes in: dq and dk, not dv")
def test_attention_backward(adapters, rng):
    given = qkv(rng, 2, 3, 9, 9, 16)
    out, lse = spec.attention_forward(**given)
    agrees(adapters, "attention_backward", dout=numbers(rng, *out.shape), out=out, lse=lse, causal=True, **given)


@pytest.mark.task("5.3", points=4, look="the correction of both l and o when the maximum grows")
def test_tiled_attention_agrees(adapters, rng):
    agrees(adapters, "attention_forward_tiled", "attention_forward", causal=True, **qkv(rng, 1, 2, 150, 150, 16))
