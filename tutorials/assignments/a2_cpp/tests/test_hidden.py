"""The tests that stay with the grader: sizes of 1 and of no power of two, numbers far from 0, more axes and fewer."""

import numpy as np
import pytest
from test_public import backward, norm_backward, one_tile, qkv

from minigpt.course.judging import agrees, as_tuple, writes_all
from minigpt.course.process import Failed
from minigpt.ops import numpy_ops as spec
from minigpt.ops.cases import numbers, parameters


@pytest.mark.task("1.1", points=5, look="the variance: the mean of the squared distance from the mean, in double",
                  visibility="hidden")
def test_layernorm_far_from_zero(adapters, rng):
    agrees(adapters, "layernorm_forward", x=numbers(rng, 5, 80, mean=300, decades=0), weight=parameters(rng, 80),
           bias=parameters(rng, 80), eps=1e-5)


@pytest.mark.task("1.1", points=2, look="eps, in rows that are small or all equal", visibility="hidden")
def test_layernorm_of_small_rows(adapters, rng):
    x = numbers(rng, 5, 33) * np.float32(1e-3)
    x[2] = 0.25
    agrees(adapters, "layernorm_forward", x=x, weight=parameters(rng, 33), bias=parameters(rng, 33), eps=1e-3)


@pytest.mark.task("1.2", points=8, look="x of one row, of many rows, and C that is no power of two",
                  visibility="hidden")
def test_layernorm_backward_other_shapes(adapters, rng):
    for shape in ((1, 7), (300, 3), (3, 129), (2, 3, 2, 17)):
        agrees(adapters, "layernorm_backward", **norm_backward(rng, *shape))


@pytest.mark.task("2.1", points=3, look="Tk > Tq: the last query stands at the last key", visibility="hidden")
def test_attention_with_a_cache(adapters, rng):
    for sizes in ((1, 2, 3, 11, 8), (2, 1, 1, 7, 5), (1, 1, 1, 1, 1)):
        agrees(adapters, "attention_forward", causal=True, **qkv(rng, *sizes))


@pytest.mark.task("2.1", points=3, look="subtract the largest score before the exponential", visibility="hidden")
def test_attention_of_large_scores(adapters, rng):
    given = qkv(rng, 1, 2, 20, 20, 16)
    agrees(adapters, "attention_forward", causal=True, **given | dict(q=given["q"] * np.float32(50)))


@pytest.mark.task("2.2", points=10, look="causal=False, and Tk > Tq", visibility="hidden")
def test_attention_backward_other_shapes(adapters, rng):
    for causal, sizes in ((False, (1, 2, 5, 9, 7)), (True, (2, 1, 4, 10, 3)), (True, (1, 1, 1, 1, 1))):
        agrees(adapters, "attention_backward", **backward(rng, *sizes, causal=causal))


@pytest.mark.task("3.1", points=4, look="rows that see none of the keys, before or after others came",
                  visibility="hidden")
def test_a_tile_on_the_diagonal(adapters, rng):
    for diagonal in (-3, 0, 2):
        for first in (True, False):
            one_tile(adapters, rng, rows=5, keys=7, D=3, diagonal=diagonal, first=first)


@pytest.mark.task("3.1", points=4, look="the order of the tiles does not matter, nor their sizes", visibility="hidden")
def test_tiles_of_odd_sizes(adapters, rng):
    for causal, sizes in ((False, (1, 2, 9, 29, 8)), (True, (1, 1, 11, 40, 5))):
        agrees(adapters, "attention_by_tiles", "attention_forward", causal=causal, **qkv(rng, *sizes))


@pytest.mark.task("4.1", points=4, look="tiles that are cut off: by the end, and by the mask", visibility="hidden")
def test_tiled_attention_of_ragged_sizes(adapters, rng):
    for causal, sizes in ((False, (1, 1, 65, 129, 8)), (True, (1, 2, 70, 131, 8)), (True, (1, 1, 1, 200, 4))):
        agrees(adapters, "attention_forward_tiled", "attention_forward", causal=causal, **qkv(rng, *sizes))


@pytest.mark.task("4.1", points=4, look="memory: an array with an element for every key has no room",
                  visibility="hidden")
def test_tiled_attention_in_little_memory(adapters, rng):
    name, T = "attention_forward_tiled_in_little_memory", 2**21               # the scores of one query take 8 MB
    given = {key: rng.normal(0.5, 1, (1, 1, n, 1)).astype(np.float32) for key, n in zip("qkv", (2, T, T), strict=True)}
    given["q"].flat = 20, -15                                                  # a few keys matter, of two million
    results = as_tuple(name, ("out", "lse"), getattr(adapters, name)(**given))
    expected = spec.attention_forward(**given)
    if not all(np.allclose(got, wanted, rtol=1e-3) for got, wanted in zip(results, expected, strict=True)):
        raise Failed(f"{name}: the results for {T} keys are wrong")


@pytest.mark.task("5.1", points=3, look="the bounds of your loops, at the end of the last row", visibility="hidden")
def test_layernorm_stays_inside_other_shapes(sanitized, rng):
    for shape in ((1, 1), (2, 3), (1, 63), (65, 9)):
        writes_all(sanitized, "layernorm_forward", x=numbers(rng, *shape), weight=parameters(rng, shape[-1]),
                   bias=parameters(rng, shape[-1]), eps=1e-5)
        writes_all(sanitized, "layernorm_backward", **norm_backward(rng, *shape))


@pytest.mark.task("5.2", points=4, look="the bounds of your loops: the last tile's, the last head's",
                  visibility="hidden")
def test_attention_stays_inside_other_shapes(sanitized, rng):
    for causal, sizes in ((True, (1, 1, 1, 1, 1)), (True, (1, 2, 3, 17, 7)), (False, (1, 1, 63, 65, 5))):
        for name in ("attention_forward", "attention_forward_tiled", "attention_by_tiles"):
            writes_all(sanitized, name, causal=causal, **qkv(rng, *sizes))
        writes_all(sanitized, "attention_backward", **backward(rng, *sizes, causal=causal))
