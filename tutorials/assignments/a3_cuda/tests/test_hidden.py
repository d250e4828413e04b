"""The tests that stay with the grader: sizes of 1 and of no power of two, numbers far from 0, and more counts."""

import numpy as np
import pytest
from test_public import attention_backward, exactly, norm, norm_backward, qkv, sums

from minigpt.course.judging import agrees
from minigpt.course.kernels import moves, no_bank_conflicts
from minigpt.ops.cases import numbers

FLOAT = 4                                 # bytes


@pytest.mark.task("1.1", points=2, look="sizes of 1, and of one more than there are threads", visibility="hidden")
def test_residual_add_of_other_sizes(adapters, rng):
    for n in (1, 511, 513):
        a, b = numbers(rng, n), numbers(rng, n)
        exactly(adapters, "residual_add", a + b, a=a, b=b)


@pytest.mark.task("1.2", points=3, look="tiles at the edges, of fewer rows or columns than 32", visibility="hidden")
def test_transpose_of_other_shapes(adapters, rng):
    for shape in ((1, 1), (33, 5), (17, 65)):
        x = numbers(rng, *shape)
        exactly(adapters, "transpose", x.T.copy(), x=x)


@pytest.mark.task("1.2", points=2, look="how far apart a column's numbers lie in the tile: 32 words is one bank",
                  visibility="hidden")
def test_transpose_has_no_bank_conflicts(adapters, rng):
    x = numbers(rng, 64, 32)
    exactly(adapters, "transpose", x.T.copy(), x=x)
    no_bank_conflicts(adapters)


@pytest.mark.task("2.1", points=4, look="rows shorter than the block has threads, and longer", visibility="hidden")
def test_row_sums_in_shared_memory_of_other_shapes(adapters, rng):
    for shape in ((1, 1), (2, 100), (3, 1027), (2, 1024)):
        sums(adapters, "row_sums_shared", numbers(rng, *shape))
    moves(adapters, 2 * 1024 * FLOAT, "x read once")


@pytest.mark.task("2.2", points=4, look="rows shorter than a warp has lanes; a number of rows that 4 does not divide",
                  visibility="hidden")
def test_row_sums_in_a_warp_of_other_shapes(adapters, rng):
    for shape in ((1, 1), (5, 7), (6, 129), (4, 1024)):
        sums(adapters, "row_sums_warp", numbers(rng, *shape))
    moves(adapters, 4 * 1024 * FLOAT, "x read once")


@pytest.mark.task("3.1", points=4, look="the variance: the mean of the squared distance from the mean",
                  visibility="hidden")
def test_layernorm_far_from_zero(adapters, rng):
    agrees(adapters, "layernorm_forward", **norm(rng, 5, 80, mean=300, decades=0))


@pytest.mark.task("3.1", points=3, look="rows shorter than a block, and as long as they may be", visibility="hidden")
def test_layernorm_forward_of_other_shapes(adapters, rng):
    for shape in ((1, 3), (4, 33), (1, 4096)):
        agrees(adapters, "layernorm_forward", **norm(rng, *shape))


@pytest.mark.task("3.2", points=4, look="rows shorter than a block, and as long as they may be", visibility="hidden")
def test_layernorm_backward_x_of_other_shapes(adapters, rng):
    for shape in ((1, 3), (4, 33), (1, 4096)):
        agrees(adapters, "layernorm_backward_x", "layernorm_backward", ("dx",), **norm_backward(rng, *shape))


@pytest.mark.task("3.2", points=3, look="keep what was computed from dy and x", visibility="hidden")
def test_layernorm_backward_reads_x_and_dy_once(adapters, rng):
    rows, C = 8, 512
    needed = 4 * rows * C * FLOAT + 2 * rows * C // 32 * 32                   # a sector of mean and rstd for 32 numbers
    agrees(adapters, "layernorm_backward_x", "layernorm_backward", ("dx",), **norm_backward(rng, rows, C))
    moves(adapters, needed, "for every row dy, x and weight read once, dx written once, mean and rstd by every warp")


@pytest.mark.task("3.3", points=4, look="the last part, which has fewer rows; columns at the edge", visibility="hidden")
def test_layernorm_backward_parameters_of_other_shapes(adapters, rng):
    for shape in ((1, 3), (17, 33), (33, 130)):
        agrees(adapters, "layernorm_backward_parameters", "layernorm_backward", ("dweight", "dbias"),
               **norm_backward(rng, *shape))


@pytest.mark.task("3.3", points=2, look="threadIdx.x should run along a row, though the sums run down the columns",
                  visibility="hidden")
def test_layernorm_backward_parameters_are_coalesced(adapters, rng):
    rows, C, parts = 64, 128, 4
    needed = 2 * rows * C * FLOAT + (2 * parts + 1) * 2 * C * FLOAT
    needed += 2 * rows * C // 32 * 32     # mean and rstd: a sector for every warp and row
    agrees(adapters, "layernorm_backward_parameters", "layernorm_backward", ("dweight", "dbias"),
           **norm_backward(rng, rows, C))
    moves(adapters, needed, "dy and x read once, 4 parts of the sums written and read, mean and rstd read by every "
          "warp")


@pytest.mark.task("4.1", points=4, look="T = 1, and T that is no multiple of a block; large scores",
                  visibility="hidden")
def test_attention_of_other_lengths(adapters, rng):
    for T, size in ((1, 1), (17, 1), (33, 20)):
        given = qkv(rng, 1, 2, T)
        given["q"] *= np.float32(size)
        agrees(adapters, "attention_naive", "attention_forward", causal=True, **given)


@pytest.mark.task("4.2", points=5, look="the correction of both l and o when the maximum grows; the last tile",
                  visibility="hidden")
def test_tiled_attention_of_other_lengths(adapters, rng):
    for T, causal in ((1, True), (17, False), (65, True)):
        given = qkv(rng, 1, 2, T)
        given["k"] *= np.linspace(1, 5, T, dtype=np.float32)[:, None]                        # the maximum grows
        agrees(adapters, "attention_tiled", "attention_forward", causal=causal, **given)


@pytest.mark.task("4.2", points=3, look="a block of 8 queries reads a tile once, for all of them", visibility="hidden")
def test_tiled_attention_shares_its_tiles(adapters, rng):
    T = 64
    needed = (2 * T + 2 * T // 8 * T) * 32 * FLOAT + T * 32                   # and a sector for every lse
    agrees(adapters, "attention_tiled", "attention_forward", causal=False, **qkv(rng, 1, 1, T))
    moves(adapters, needed, "every query read once, every key and value once by each block of 8 queries, every output "
          "written once")


@pytest.mark.task("4.3", points=4, look="queries before the key, and T that is no multiple of a tile",
                  visibility="hidden")
def test_attention_backward_keys_of_other_lengths(adapters, rng):
    for T, causal in ((1, True), (17, False), (65, True)):
        agrees(adapters, "attention_backward_keys", "attention_backward", ("dk", "dv"),
               **attention_backward(rng, 1, 2, T, causal))


@pytest.mark.task("4.3", points=2, look="the tiles: all warps of a block share them, and lanes read a column",
                  visibility="hidden")
def test_attention_backward_keys_has_no_bank_conflicts(adapters, rng):
    agrees(adapters, "attention_backward_keys", "attention_backward", ("dk", "dv"),
           **attention_backward(rng, 1, 1, 32, causal=False))
    no_bank_conflicts(adapters)
