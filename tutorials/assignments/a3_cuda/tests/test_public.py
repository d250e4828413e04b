"""The tests that you have. More are run when your work is graded, of other sizes and other numbers: see README.md.

Calls run under the emulator, the second of two with the threads in reverse order. They fail when it finds something: a
race, an address out of bounds, a barrier that some threads do not reach. Other tests count what memory had to do.
"""

import numpy as np
import pytest

from minigpt.course.judging import agrees, near
from minigpt.course.kernels import moves, no_bank_conflicts, registers_only
from minigpt.ops import numpy_ops as spec
from minigpt.ops.cases import numbers, parameters


def exactly(adapters, name, expected, **arguments):
    for _ in range(2):
        near(name, "y", getattr(adapters, name)(**arguments), expected, tolerance=0)


def sums(adapters, name, x):
    expected = x.astype(np.float64).sum(axis=1).astype(np.float32)
    for _ in range(2):
        near(name, "sums", getattr(adapters, name)(x=x), expected, tolerance=1e-5)


def norm(rng, rows, C, **how):
    return dict(x=numbers(rng, rows, C, **how), weight=parameters(rng, C), bias=parameters(rng, C), eps=1e-5)


def norm_backward(rng, rows, C):
    x, weight = numbers(rng, rows, C), parameters(rng, C)
    _, mean, rstd = spec.layernorm_forward(x, weight)
    return dict(dy=numbers(rng, rows, C), x=x, weight=weight, mean=mean, rstd=rstd)


def qkv(rng, B, H, T):
    return dict(q=numbers(rng, B, H, T, 32), k=numbers(rng, B, H, T, 32), v=numbers(rng, B, H, T, 32))


def attention_backward(rng, B, H, T, causal):
    given = dict(causal=causal, **qkv(rng, B, H, T))
    out, lse = spec.attention_forward(**given)
    return dict(dout=numbers(rng, *out.shape), out=out, lse=lse, **given)


@pytest.mark.task("1.1", points=2, look="the index, and the step of the loop: 512 threads, 1000 numbers")
def test_residual_add(adapters, rng):
    a, b = numbers(rng, 1000), numbers(rng, 1000)
    exactly(adapters, "residual_add", a + b, a=a, b=b)


@pytest.mark.task("1.1", points=1, look="which numbers the 32 threads of a warp take at the same time")
def test_residual_add_is_coalesced(adapters, rng):
    a, b = numbers(rng, 2048), numbers(rng, 2048)
    exactly(adapters, "residual_add", a + b, a=a, b=b)
    moves(adapters, 3 * a.nbytes, "a and b read once, y written once")


@pytest.mark.task("1.2", points=2, look="rows and columns: which index is whose, in x, in the tile and in y")
def test_transpose(adapters, rng):
    x = numbers(rng, 64, 96)
    exactly(adapters, "transpose", x.T.copy(), x=x)


@pytest.mark.task("1.2", points=2, look="threadIdx.x should run along the rows of x, and along the rows of y")
def test_transpose_is_coalesced(adapters, rng):
    x = numbers(rng, 64, 96)
    exactly(adapters, "transpose", x.T.copy(), x=x)
    moves(adapters, 2 * x.nbytes, "x read once, y written once")


@pytest.mark.task("2.1", points=4, look="a barrier in every round: what one thread wrote another reads")
def test_row_sums_in_shared_memory(adapters, rng):
    sums(adapters, "row_sums_shared", numbers(rng, 5, 300))


@pytest.mark.task("2.2", points=3, look="the five exchanges: over 16, 8, 4, 2 and 1 lanes")
def test_row_sums_in_a_warp(adapters, rng):
    sums(adapters, "row_sums_warp", numbers(rng, 8, 300))


@pytest.mark.task("2.2", points=1, look="shuffles exchange registers: no __shared__, no __syncthreads()")
def test_row_sums_in_registers(adapters, rng):
    sums(adapters, "row_sums_warp", numbers(rng, 8, 64))
    registers_only(adapters)


@pytest.mark.task("3.1", points=4, look="mean and variance are those of a row; eps is added to the variance")
def test_layernorm_forward(adapters, rng):
    agrees(adapters, "layernorm_forward", **norm(rng, 6, 300))


@pytest.mark.task("3.1", points=3, look="keep the row, in shared memory or in registers, between the passes")
def test_layernorm_reads_x_once(adapters, rng):
    given = norm(rng, 8, 512)
    agrees(adapters, "layernorm_forward", **given)
    moves(adapters, 4 * given["x"].nbytes, "for every row x, weight and bias read once, y written once")


@pytest.mark.task("3.2", points=4, look="the two sums over the row, and what each is multiplied with")
def test_layernorm_backward_x(adapters, rng):
    agrees(adapters, "layernorm_backward_x", "layernorm_backward", ("dx",), **norm_backward(rng, 6, 300))


@pytest.mark.task("3.3", points=5, look="who adds to which number, and in which order")
def test_layernorm_backward_parameters(adapters, rng):
    agrees(adapters, "layernorm_backward_parameters", "layernorm_backward", ("dweight", "dbias"),
           **norm_backward(rng, 40, 96))


@pytest.mark.task("4.1", points=2, look="scale, and the sum that the output is divided by")
def test_attention_of_all_keys(adapters, rng):
    agrees(adapters, "attention_naive", "attention_forward", causal=False, **qkv(rng, 1, 2, 12))


@pytest.mark.task("4.1", points=2, look="the mask: a query sees its own key, and those before it")
def test_attention_is_causal(adapters, rng):
    agrees(adapters, "attention_naive", "attention_forward", causal=True, **qkv(rng, 1, 2, 12))


@pytest.mark.task("4.2", points=4, look="what lane j does with key j, and lane d with number d, in one tile")
def test_tiled_attention_of_one_tile(adapters, rng):
    agrees(adapters, "attention_tiled", "attention_forward", causal=True, **qkv(rng, 1, 2, 32))


@pytest.mark.task("4.2", points=3, look="how far apart the lanes' addresses in shared memory are: 32 words is one bank")
def test_tiled_attention_has_no_bank_conflicts(adapters, rng):
    agrees(adapters, "attention_tiled", "attention_forward", causal=False, **qkv(rng, 1, 1, 64))
    no_bank_conflicts(adapters)


@pytest.mark.task("4.3", points=5, look="p from lse, ds from delta; which of dk and dv has the scale")
def test_attention_backward_keys(adapters, rng):
    agrees(adapters, "attention_backward_keys", "attention_backward", ("dk", "dv"),
           **attention_backward(rng, 1, 2, 32, causal=True))
