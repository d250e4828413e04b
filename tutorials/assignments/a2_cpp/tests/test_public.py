"""The tests that you have. More are run when your work is graded, of other sizes and other numbers: see README.md.

Those of tasks 5.1 and 5.2 call your functions compiled with sanitizers, which watch every access to memory. They ask
for no right numbers, only that every element of the results is written.
"""

import numpy as np
import pytest

from minigpt.course.judging import agrees, near, writes_all
from minigpt.ops import numpy_ops as spec
from minigpt.ops.cases import numbers, parameters


@pytest.mark.task("1.1", points=5, look="mean and variance are those of a row; eps is added to the variance")
def test_layernorm_forward(adapters, rng):
    agrees(adapters, "layernorm_forward", x=numbers(rng, 2, 7, 48), weight=parameters(rng, 48),
           bias=parameters(rng, 48), eps=1e-5)


def norm_backward(rng, *shape):
    x, weight = numbers(rng, *shape), parameters(rng, shape[-1])
    _, mean, rstd = spec.layernorm_forward(x, weight)
    return dict(dy=numbers(rng, *shape), x=x, weight=weight, mean=mean, rstd=rstd)


@pytest.mark.task("1.2", points=8, look="the two terms that come through the mean and through rstd")
def test_layernorm_backward(adapters, rng):
    agrees(adapters, "layernorm_backward", **norm_backward(rng, 2, 7, 48))


def qkv(rng, B, H, Tq, Tk, D):
    return dict(q=numbers(rng, B, H, Tq, D), k=numbers(rng, B, H, Tk, D), v=numbers(rng, B, H, Tk, D))


@pytest.mark.task("2.1", points=5, look="scale, and where the next head begins")
def test_attention_of_all_keys(adapters, rng):
    agrees(adapters, "attention_forward", causal=False, **qkv(rng, 2, 3, 9, 9, 16))


@pytest.mark.task("2.1", points=3, look="the mask: a query sees its own key, and those before it")
def test_attention_is_causal(adapters, rng):
    agrees(adapters, "attention_forward", causal=True, **qkv(rng, 2, 3, 9, 9, 16))


def backward(rng, *sizes, causal=True):
    given = qkv(rng, *sizes)
    out, lse = spec.attention_forward(causal=causal, **given)
    return dict(dout=numbers(rng, *out.shape), out=out, lse=lse, causal=causal, **given)


@pytest.mark.task("2.2", points=10, look="delta, and where scale comes in: dq and dk, not dv")
def test_attention_backward(adapters, rng):
    agrees(adapters, "attention_backward", **backward(rng, 2, 3, 9, 9, 16))


def absorbed(q, k, v, diagonal, m, l, o):
    """What attention_absorb must give, in float64."""
    q, k, v, m, l, o = (x.astype(np.float64) for x in (q, k, v, m, l, o))
    seen = np.arange(len(k)) <= np.arange(len(q))[:, None] + diagonal         # (rows, keys)
    s = np.where(seen, q @ k.T * q.shape[1] ** -0.5, -np.inf)
    m_new = np.maximum(m, s.max(axis=1))
    finite = np.where(np.isfinite(m_new), m_new, 0)                           # rows that have seen no key yet
    correction, p = np.exp(m - finite), np.exp(s - finite[:, None])
    return m_new, l * correction + p.sum(axis=1), o * correction[:, None] + p @ v


def one_tile(adapters, rng, rows, keys, D, diagonal, first):
    q, k, v = (numbers(rng, n, D) for n in (rows, keys, keys))
    m, l, o = np.full(rows, -np.inf, np.float32), np.zeros(rows, np.float32), np.zeros((rows, D), np.float32)
    if not first:                                                             # something came before
        m, l, o = numbers(rng, rows), rng.uniform(1, 5, rows).astype(np.float32), numbers(rng, rows, D)
    given = dict(q=q, k=k, v=v, diagonal=diagonal, m=m, l=l, o=o)
    results = adapters.attention_absorb(**given)
    for name, got, expected in zip("mlo", results, absorbed(**given), strict=True):
        near("attention_absorb", name, got, expected.astype(np.float32), tolerance=1e-5)


@pytest.mark.task("3.1", points=4, look="l and o: what was added up before is too large when the maximum grows")
def test_one_tile(adapters, rng):
    one_tile(adapters, rng, rows=4, keys=6, D=8, diagonal=6, first=True)
    one_tile(adapters, rng, rows=4, keys=6, D=8, diagonal=6, first=False)


@pytest.mark.task("3.1", points=2, look="rows that see none of the keys: -inf - -inf is no number")
def test_one_tile_before_its_time(adapters, rng):
    one_tile(adapters, rng, rows=4, keys=6, D=8, diagonal=-2, first=True)


@pytest.mark.task("4.1", points=4, look="the last tiles: fewer queries, fewer keys, and diagonal")
def test_tiled_attention_agrees(adapters, rng):
    agrees(adapters, "attention_forward_tiled", "attention_forward", causal=True, **qkv(rng, 1, 2, 150, 150, 16))


@pytest.mark.task("5.1", points=2, look="the bounds of your loops, at the end of the last row")
def test_layernorm_stays_inside(sanitized, rng):
    writes_all(sanitized, "layernorm_forward", x=numbers(rng, 3, 17), weight=parameters(rng, 17),
               bias=parameters(rng, 17), eps=1e-5)
    writes_all(sanitized, "layernorm_backward", **norm_backward(rng, 3, 17))


@pytest.mark.task("5.2", points=3, look="the bounds of your loops: the mask's, the last head's")
def test_attention_stays_inside(sanitized, rng):
    for name in ("attention_forward", "attention_forward_tiled"):
        writes_all(sanitized, name, causal=True, **qkv(rng, 1, 2, 17, 17, 5))
    writes_all(sanitized, "attention_backward", **backward(rng, 1, 2, 17, 17, 5))
