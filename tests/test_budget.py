"""The error budgets themselves: what is right passes, what is wrong fails, and the failure says where."""

import numpy as np
import pytest

from minigpt.ops import budget, budget16, numpy_ops
from minigpt.ops import cases as all_cases
from minigpt.ops.check import STATISTICS


@pytest.fixture
def attention():
    case = all_cases.cases("attention_forward")[12]                       # grouped heads, rows that see no key
    return budget.budget(case.op, case.arguments), budget.run(numpy_ops, case.op, case.arguments)


def worst(results, got):
    return max(budget.judge("attention_forward", results, got), key=lambda v: np.nan_to_num(v.share, nan=np.inf))


def test_numpy_is_within_its_own_budget(attention):
    results, (out, lse) = attention
    assert worst(results, (out, lse)).share < 0.5


@pytest.mark.parametrize("ulps, ok", [(1, True), (500, False)])
def test_one_element_too_far_is_found(attention, ulps, ok):
    results, (out, lse) = attention
    out[0, 1, 68, 5] *= 1 + ulps * np.finfo(np.float32).eps
    verdict = worst(results, (out, lse))
    assert verdict.ok == ok
    if not ok:
        assert (verdict.output, verdict.index) == ("out", (0, 1, 68, 5))
        assert str(verdict).startswith("attention_forward: out[0, 1, 68, 5] is ")
        assert "% of the error budget" in str(verdict)


@pytest.mark.parametrize("output, index, value", [
    (0, (0, 0, 69, 0), np.nan), (0, (0, 0, 69, 0), np.inf), (1, (0, 1, 66), np.nan), (1, (0, 0, 66), -np.inf),
    (1, (0, 0, 0), 0.0), (1, (0, 0, 0), np.inf), (1, (0, 0, 0), np.nan),             # where -inf is expected
    (0, (0, 0, 0, 0), 1e-20)])                                                       # where 0 is
def test_what_is_not_finite_must_match(attention, output, index, value):
    results, got = attention
    got[output][index] = value
    verdict = budget.judge("attention_forward", results, got)[output]
    assert not verdict.ok and verdict.index == index


def test_wrong_shapes_and_dtypes_are_refused(attention):
    results, (out, lse) = attention
    for wrong in ((out[:, :1], lse), (out, lse.astype(np.float64)), (None, lse)):
        with pytest.raises(ValueError, match="attention_forward: (out|lse) is .*, must be float32"):
            budget.judge("attention_forward", results, wrong)
    with pytest.raises(ValueError):
        budget.judge("attention_forward", results, (out,))


def test_a_constant_in_float32_is_too_rough():
    """1 - 0.999 in float32 is wrong in the fifth digit: an error that a tolerance of 1e-5 would let pass."""
    case = next(case for case in all_cases.cases("adamw") if case.arguments["step"] == 1)
    results, (param, m, v) = budget.budget("adamw", case.arguments), budget.run(numpy_ops, "adamw", case.arguments)
    v = v * np.float32((1 - np.float32(0.999)) / 0.001)
    assert [verdict.ok for verdict in budget.judge("adamw", results, (param, m, v))] == [True, True, False]


# ---------------------------------------------------------------------------------------------------------------
# 16 bits


def share16(op, dtype, compute):
    """The largest share of the budget that compute(**arguments in float32) uses up, its results rounded to dtype."""
    shares = []
    for case in budget16.cases(op, dtype):
        expected = budget16.budget(op, case.arguments, dtype)
        results = compute(**case.arguments)
        results = [np.asarray(x) if e.output in STATISTICS else budget16.to_stored(np.asarray(x), dtype)
                   for e, x in zip(expected, results if isinstance(results, tuple) else (results,), strict=True)]
        shares += [verdict.share for verdict in budget.judge(op, expected, results)]
    return np.nan_to_num(max(shares), nan=np.inf)


both = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])


@both
@pytest.mark.parametrize("op", ["layernorm_forward", "attention_forward", "attention_backward", "linear_backward"])
def test_rounding_where_one_must_is_within_budget(op, dtype):
    assert share16(op, dtype, getattr(numpy_ops, op)) <= 0.51


@both
def test_adding_up_in_16_bits_is_too_rough(dtype):
    def sloppy(x, weight, bias=None):
        y = np.zeros((*x.shape[:-1], len(weight)), np.float32)
        for k in range(x.shape[-1]):
            y = budget16.rounded(y + x[..., k, None] * weight[:, k], dtype)
        return y if bias is None else y + bias

    assert share16("linear_forward", dtype, sloppy) > 2


@both
def test_scaled_queries_in_16_bits_are_too_rough(dtype):
    def sloppy(q, k, v, causal, scale):
        q = budget16.rounded(q * np.float32(scale or q.shape[-1] ** -0.5), dtype)
        return numpy_ops.attention_forward(q, k, v, causal, 1.0)

    assert share16("attention_forward", dtype, sloppy) > 2


@both
def test_a_bias_forgotten_is_far_out(dtype):
    assert share16("linear_forward", dtype, lambda x, weight, bias=None: numpy_ops.linear_forward(x, weight)) > 10
