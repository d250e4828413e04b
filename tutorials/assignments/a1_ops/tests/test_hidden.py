"""The tests that stay with the grader: sizes of 1 and of no power of two, numbers far from 0, more axes and fewer."""

import numpy as np
import pytest

from minigpt.course.judging import agrees, as_tuple
from minigpt.course.student import Failed
from minigpt.ops import numpy_ops as spec
from minigpt.ops.cases import numbers, parameters


@pytest.mark.task("1.1", points=2, look="a layer without a bias; x of two axes, and of four", visibility="hidden")
def test_linear_forward_other_shapes(adapters, rng):
    agrees(adapters, "linear_forward", x=numbers(rng, 1, 1), weight=parameters(rng, 3, 1), bias=None)
    agrees(adapters, "linear_forward", x=numbers(rng, 2, 3, 5, 7), weight=parameters(rng, 4, 7),
           bias=parameters(rng, 4))


@pytest.mark.task("1.2", points=2, look="x of two axes, and of four", visibility="hidden")
def test_linear_backward_other_shapes(adapters, rng):
    for rows in ((6,), (2, 3, 5)):
        agrees(adapters, "linear_backward", dy=numbers(rng, *rows, 4), x=numbers(rng, *rows, 7),
               weight=parameters(rng, 4, 7))


@pytest.mark.task("2.1", points=1, look="x far from 0", visibility="hidden")
def test_gelu_forward_far_out(adapters, rng):
    agrees(adapters, "gelu_forward", x=numbers(rng, 3, 2, 65) * np.float32(10))


@pytest.mark.task("2.2", points=2, look="x far from 0, where the slope is 0 or 1", visibility="hidden")
def test_gelu_backward_far_out(adapters, rng):
    agrees(adapters, "gelu_backward", dy=numbers(rng, 3, 2, 65), x=numbers(rng, 3, 2, 65) * np.float32(10))


@pytest.mark.task("3.1", points=3, look="the variance: the mean of the squared distance from the mean",
                  visibility="hidden")
def test_layernorm_far_from_zero(adapters, rng):
    agrees(adapters, "layernorm_forward", x=numbers(rng, 5, 80, mean=300, decades=0), weight=parameters(rng, 80),
           bias=parameters(rng, 80), eps=1e-5)


@pytest.mark.task("3.1", points=2, look="eps, in rows that are small or all equal", visibility="hidden")
def test_layernorm_of_small_rows(adapters, rng):
    x = numbers(rng, 5, 33) * np.float32(1e-3)
    x[2] = 0.25
    agrees(adapters, "layernorm_forward", x=x, weight=parameters(rng, 33), bias=parameters(rng, 33), eps=1e-3)


@pytest.mark.task("3.2", points=6, look="x of two axes, and C that is no power of two", visibility="hidden")
def test_layernorm_backward_other_shapes(adapters, rng):
    for shape in ((3, 129), (2, 3, 2, 17)):
        x, weight = numbers(rng, *shape), parameters(rng, shape[-1])
        _, mean, rstd = spec.layernorm_forward(x, weight)
        agrees(adapters, "layernorm_backward", dy=numbers(rng, *shape), x=x, weight=weight, mean=mean, rstd=rstd)


@pytest.mark.task("4.1", points=3, look="subtract the row's maximum before the exponential", visibility="hidden")
def test_cross_entropy_of_large_logits(adapters, rng):
    logits, targets = numbers(rng, 7, 65) * np.float32(100), rng.integers(0, 65, 7)
    agrees(adapters, "cross_entropy_forward", logits=logits, targets=targets)


@pytest.mark.task("4.2", points=3, look="exp(logits - lse) needs no maximum: it is at most 1", visibility="hidden")
def test_cross_entropy_backward_of_large_logits(adapters, rng):
    logits, targets = numbers(rng, 7, 65) * np.float32(100), rng.integers(0, 65, 7)
    targets[3] = -100
    lse = spec.cross_entropy_forward(logits, targets)[1]
    agrees(adapters, "cross_entropy_backward", dloss=0.25, logits=logits, targets=targets, lse=lse)


def qkv(rng, B, H, Tq, Tk, D, scale=1):
    return dict(q=numbers(rng, B, H, Tq, D) * np.float32(scale), k=numbers(rng, B, H, Tk, D),
                v=numbers(rng, B, H, Tk, D))


@pytest.mark.task("5.1", points=4, look="Tk > Tq: the last query stands at the last key", visibility="hidden")
def test_attention_with_a_cache(adapters, rng):
    for sizes in ((1, 2, 3, 11, 8), (2, 1, 1, 7, 5), (1, 1, 1, 1, 1)):
        agrees(adapters, "attention_forward", causal=True, **qkv(rng, *sizes))


@pytest.mark.task("5.1", points=3, look="subtract the row's maximum before the exponential", visibility="hidden")
def test_attention_of_large_scores(adapters, rng):
    agrees(adapters, "attention_forward", causal=True, **qkv(rng, 1, 2, 20, 20, 16, scale=50))


@pytest.mark.task("5.2", points=7, look="causal=False, and Tk > Tq", visibility="hidden")
def test_attention_backward_other_shapes(adapters, rng):
    for causal, sizes in ((False, (1, 2, 5, 9, 7)), (True, (2, 1, 4, 10, 3))):
        given = qkv(rng, *sizes)
        out, lse = spec.attention_forward(causal=causal, **given)
        agrees(adapters, "attention_backward", dout=numbers(rng, *out.shape), out=out, lse=lse, causal=causal, **given)


@pytest.mark.task("5.3", points=4, look="tiles that are cut off: by the end, and by the mask", visibility="hidden")
def test_tiled_attention_of_ragged_sizes(adapters, rng):
    for causal, sizes in ((False, (1, 1, 65, 129, 8)), (True, (1, 2, 70, 131, 8)), (True, (1, 1, 1, 200, 4))):
        agrees(adapters, "attention_forward_tiled", "attention_forward", causal=causal, **qkv(rng, *sizes, scale=5))


@pytest.mark.task("5.3", points=8, look="memory: (T, T) scores have no room, only (tile, tile)", visibility="hidden")
def test_tiled_attention_in_little_memory(adapters, rng):
    T = 12288                                                                 # T x T scores would take 604 MB
    given = qkv(rng, 1, 1, T, T, 8)
    results = as_tuple("attention_forward_tiled", ("out", "lse"), adapters.attention_forward_tiled(**given))
    expected = spec.attention_forward(given["q"][:, :, -4:], given["k"], given["v"])     # the last four queries
    for name, got, wanted in zip(("out", "lse"), results, expected, strict=True):
        if not np.allclose(got[:, :, -4:], wanted, rtol=1e-3, atol=1e-3):
            raise Failed(f"attention_forward_tiled: {name} of the last queries of {T} is wrong")
