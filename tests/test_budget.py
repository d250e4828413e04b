"""The error budgets themselves: what is right passes, what is wrong fails, and the failure says where."""

import numpy as np
import pytest

from minigpt.ops import budget, numpy_ops
from minigpt.ops import cases as all_cases


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
