"""Bad arguments get the same error, in the same words, from every backend, before anything is written."""

import inspect

import numpy as np
import pytest
from test_mirror import BUFFERS, IMPLEMENTATIONS, OPS, first_case_with_columns, having, nan_array

from minigpt.ops import budget, numpy_ops
from minigpt.ops import cases as all_cases
from minigpt.ops import check as check_module


def _error(ops, op, arguments):
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(ops, op)(**arguments)
    return type(caught.value), str(caught.value)


def refused(op, arguments, *words):
    """Every backend refuses the arguments in the same words, which name the op and contain `words`."""
    kind, text = _error(numpy_ops, op, arguments)
    assert text.startswith(f"{op}: "), text
    for word in words:
        assert word in text, text
    for name, ops in having(op).items():
        assert _error(ops, op, arguments) == (kind, text), name
    return kind


def _small(op):
    return dict(first_case_with_columns(op).arguments)


ARRAYS = [(op, name) for op in OPS for name, x in _small(op).items() if isinstance(x, np.ndarray)]


@pytest.mark.parametrize("op, name", ARRAYS)
def test_refuses_what_is_no_array(op, name):
    optional = inspect.signature(getattr(numpy_ops, op)).parameters[name].default is None
    for wrong in ([1.0, 2.0], "x") if optional else ([1.0, 2.0], None):
        assert refused(op, dict(_small(op), **{name: wrong}), name) is TypeError


@pytest.mark.parametrize("op, name", ARRAYS)
def test_refuses_another_dtype(op, name):
    arguments = _small(op)
    if arguments[name].dtype.kind == "f":
        wrong = [np.float16, np.int64, np.complex64]
        if all(x.dtype.kind != "f" or n in check_module.STATISTICS for n, x in arguments.items()
               if n != name and isinstance(x, np.ndarray)):
            wrong.remove(np.float16)                   # alone, or with float32 statistics, any floating type will do
    else:
        wrong = [np.float32]
    for dtype in wrong:
        assert refused(op, dict(arguments, **{name: arguments[name].astype(dtype)}), name) is TypeError


# Arrays that may have more or fewer columns for all that the others say.
FREE_LAST_AXIS = {
    ("moe_router_backward", "logits"), ("router_losses_forward", "logits"), ("router_losses_forward", "experts"),
    ("router_losses_backward", "logits"), ("router_losses_backward", "experts"), ("moe_dispatch_forward", "x"),
    ("moe_dispatch_forward", "experts"), ("moe_dispatch_backward", "drows"), ("moe_combine_forward", "rows"),
}


@pytest.mark.parametrize("op, name", [(op, name) for op, name in ARRAYS if op != "squared_norm"])
def test_refuses_another_shape(op, name):
    arguments = _small(op)
    x = arguments[name]
    wrong = [x[..., :-1], np.repeat(x, 2, axis=-1), x[..., None]]
    if (op, name) in FREE_LAST_AXIS:
        wrong = wrong[2:]
    if (op, name) in (("gelu_forward", "x"), ("cross_entropy_forward", "logits"), ("cross_entropy_backward", "logits")):
        wrong = [x[0]] if name == "logits" else []                       # nothing to hold the last axis against
    if name == "tokens":
        wrong = wrong[2:] if op == "embedding_forward" else wrong
    for other in wrong:
        assert refused(op, dict(arguments, **{name: other})) is ValueError


@pytest.mark.parametrize("op", [op for op in OPS if BUFFERS[op]])
def test_refuses_wrong_buffers(op):
    arguments, key = _small(op), BUFFERS[op]
    expected = budget.budget(op, arguments)
    if len(expected) == 1:
        shape = expected[0].expected.shape
        assert refused(op, dict(arguments, **{key: np.empty((2, *shape), np.float32)}), key) is ValueError
        assert refused(op, dict(arguments, **{key: np.empty(shape, np.float64)}), key) is TypeError
        assert refused(op, dict(arguments, **{key: [1.0]}), key) is TypeError
        return
    for wrong in ((), (np.empty(3, np.float32),) * (len(expected) + 1), np.empty(len(expected), np.float32), 7):
        assert refused(op, dict(arguments, **{key: wrong}), key, str(len(expected))) is TypeError
    for i, e in enumerate(expected):
        arrays = [nan_array(e.expected.shape, e.dtype) for e in expected]
        arrays[i] = nan_array((2, *e.expected.shape), e.dtype)
        assert refused(op, dict(arguments, **{key: tuple(arrays)}), e.output) is ValueError
        arrays[i] = np.empty(e.expected.shape, np.float64)
        assert refused(op, dict(arguments, **{key: tuple(arrays)}), e.output) is TypeError


@pytest.mark.parametrize("op", ["linear_forward", "linear_gelu_forward", "linear_backward"])
def test_refuses_results_that_overlap(op):
    rng = np.random.default_rng(3)
    memory = all_cases.numbers(rng, 200)
    x, weight = memory[:25].reshape(5, 5), memory[25:50].reshape(5, 5)
    one, two, bias = memory[50:75].reshape(5, 5), memory[75:100].reshape(5, 5), memory[100:105]
    onto_x, onto_weight = memory[5:30].reshape(5, 5), memory[45:70].reshape(5, 5)
    if op == "linear_forward":
        tries = [("out", "x", x), ("out", "x", onto_x), ("out", "weight", onto_weight)]
    elif op == "linear_gelu_forward":
        tries = [("y", "x", (x, one)), ("pre", "weight", (one, weight)), ("pre", "y", (one, one))]
    else:
        tries = [("dx", "x", (x, one, None)), ("dx", "dy", (two, one, None)),
                 ("dweight", "weight", (None, weight, None)), ("dbias", "dweight", (None, one, one[0]))]
    arguments = dict(x=x, weight=weight, **(dict(dy=two) if "backward" in op else dict(bias=bias)))
    for output, argument, buffers in tries:
        assert refused(op, {**arguments, BUFFERS[op]: buffers}, f"{output} overlaps {argument}") is ValueError


MAY_BE_ITSELF = {("gelu_forward", "x"), ("gelu_backward", "dy"), ("rope_forward", "x"), ("rope_backward", "dy"),
                 ("residual_layernorm_backward", "dh"), ("cross_entropy_backward", "logits")}   # the first result


@pytest.mark.parametrize("op", OPS)
def test_refuses_any_result_over_any_argument(op):
    """Over the whole of an argument, over a part of it, and results over each other."""
    arguments = next(case.arguments for case in all_cases.cases(op)
                     if all(x.size > 1 for x in case.arguments.values() if isinstance(x, np.ndarray)))
    if op in budget.IN_PLACE:
        other, name = budget.OUTPUTS[op][-2:]
        assert refused(op, dict(arguments, **{name: arguments[other]}), f"{name} overlaps") is ValueError
        return
    if BUFFERS[op] is None:
        return
    expected = budget.budget(op, arguments)
    for i, e in enumerate(expected):
        def with_result(array, i=i):
            arrays = [nan_array(one.expected.shape, one.dtype) for one in expected]
            arrays[i] = array
            return {BUFFERS[op]: tuple(arrays) if len(arrays) > 1 else array}

        for name, x in arguments.items():
            if not isinstance(x, np.ndarray) or x.dtype != e.dtype:
                continue
            count = int(np.prod(e.expected.shape))
            memory = np.zeros(x.size + count + 1, x.dtype)
            memory[:x.size] = x.ravel()
            argument = {name: memory[:x.size].reshape(x.shape)}
            for begin in (0, 1) if x.shape == e.expected.shape else (x.size - 1,):
                if begin == 0 and i == 0 and (op, name) in MAY_BE_ITSELF:
                    continue
                over = with_result(memory[begin:begin + count].reshape(e.expected.shape))
                assert refused(op, {**arguments, **argument, **over}, f" overlaps {name}, must have") is ValueError
        for j, other in enumerate(expected[:i]):
            if other.expected.shape == e.expected.shape and other.dtype == e.dtype:
                arrays = [nan_array(one.expected.shape, one.dtype) for one in expected]
                arrays[i] = arrays[j]
                assert refused(op, {**arguments, BUFFERS[op]: tuple(arrays)}, "overlaps") is ValueError


@pytest.mark.parametrize("ops", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def test_refuses_unknown_kernels(ops):
    assert set(ops.kernels) == {op for op in OPS if "kernel" in inspect.signature(getattr(numpy_ops, op)).parameters}
    for op, rungs in ops.kernels.items():
        kind, text = _error(ops, op, dict(_small(op), kernel="warp"))
        assert kind is ValueError and text.startswith(f"{op}: ") and "'warp'" in text
        assert all(rung in text for rung in rungs)


def _array(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("op, changes, kind, words", [
    ("embedding_forward", dict(tokens=np.array([[0, 5]]), wte=_array(5, 3)), ValueError,
     ("tokens[0, 1] is 5", "0 .. 4")),
    ("embedding_forward", dict(tokens=np.array([[-1, 0]])), ValueError, ("tokens[0, 0] is -1",)),
    ("embedding_forward", dict(tokens=np.zeros((0, 3), int)), ValueError, ("tokens", "empty")),
    ("embedding_forward", dict(position=-1), ValueError, ("position",)),
    ("embedding_forward", dict(position=10 ** 6), ValueError, ("position", "wpe")),
    ("embedding_backward", dict(tokens=np.array([[0, 99]])), ValueError, ("tokens[0, 1] is 99",)),
    ("layernorm_forward", dict(x=_array(0, 5)), ValueError, ("x", "empty")),
    ("linear_forward", dict(x=_array(3, 4), weight=_array(5, 6)), ValueError, ("x", "(..., 6)")),
    ("linear_forward", dict(weight=_array(5)), ValueError, ("weight", "(N, K)")),
    ("rope_forward", dict(x=_array(1, 1, 3, 5)), ValueError, ("5", "even")),
    ("rope_forward", dict(cos=_array(4, 3)), ValueError, ("cos",)),
    ("attention_forward", dict(k=_array(1, 5, 7, 4), v=_array(1, 5, 7, 4), q=_array(1, 12, 7, 4)), ValueError,
     ("k has 5 heads", "12")),
    ("attention_forward", dict(k=_array(1, 2, 7, 4), v=_array(1, 2, 8, 4), q=_array(1, 2, 7, 4)), ValueError, ("v",)),
    ("attention_forward", dict(k=_array(1, 2, 0, 4), v=_array(1, 2, 0, 4), q=_array(1, 2, 7, 4)), ValueError,
     ("k", "empty")),
    ("attention_forward", dict(scale=float("nan")), ValueError, ("scale",)),
    ("attention_backward", dict(scale=float("inf")), ValueError, ("scale",)),
    ("cross_entropy_forward", dict(logits=_array(2, 3), targets=np.array([0, 3])), ValueError, ("targets[1] is 3",)),
    ("cross_entropy_forward", dict(logits=_array(2, 3), targets=np.array([-1, 0])), ValueError, ("targets[0] is -1",)),
    ("adamw", dict(step=0), ValueError, ("step",)),
    ("adamw", dict(step=1.5), TypeError, ("step", "integer")),
    ("adamw", dict(lr=None), TypeError, ("lr", "number")),
    ("moe_router_forward", dict(gate="tanh"), ValueError, ("gate is 'tanh'", "softmax or sigmoid")),
    ("moe_router_forward", dict(k=5), ValueError, ("k is 5", "at most 4")),
    ("moe_router_forward", dict(groups=3), ValueError, ("groups is 3", "divide E, 4")),
    ("moe_dispatch_forward", dict(experts=np.array([[0, 4], [1, 2], [3, 0]])), ValueError, ("experts[0, 1] is 4",)),
    ("moe_dispatch_backward", dict(place=np.zeros((3, 2), int)), ValueError, ("place", "once")),
    ("grouped_linear_forward", dict(offsets=np.array([0, 5, 3, 5, 6])), ValueError, ("offsets must rise",)),
    ("layernorm_forward", dict(eps="x"), TypeError, ("eps", "number")),
    ("layernorm_forward", dict(eps=-1.0), ValueError, ("eps", "at least 0")),
    ("layernorm_backward", dict(mean=np.float32(0)), TypeError, ("mean", "array")),
    ("gelu_backward", dict(dy=np.float32(1), x=np.array(1, np.float32)), TypeError, ("dy", "array")),
    ("embedding_forward", dict(wte=_array(5, 0)), ValueError, ("wte", "empty")),
    ("attention_forward", dict(causal="no"), TypeError, ("causal", "True or False")),
    ("attention_forward", dict(scale=1e300), ValueError, ("scale", "finite")),
    ("cross_entropy_forward", dict(ignore_index=None), TypeError, ("ignore_index", "integer")),
    ("cross_entropy_backward", dict(dloss=None), TypeError, ("dloss", "number")),
    ("gelu_forward", dict(x=_array(2, 3), out=np.broadcast_to(np.float32(0), (2, 3))), ValueError,
     ("out", "read-only")),
    ("adamw", dict(v=np.broadcast_to(np.float32(0), _small("adamw")["v"].shape)), ValueError, ("v", "read-only")),
])
def test_refuses_bad_values(op, changes, kind, words):
    assert refused(op, dict(_small(op), **changes), *words) is kind


@pytest.mark.parametrize("ops", [ops for ops in IMPLEMENTATIONS.values() if ops.name == "cpp"])
def test_cpp_takes_float32_only(ops):
    for op in OPS:
        kind, text = _error(ops, op, budget.convert(_small(op), lambda x: x.astype(np.float64)))
        assert kind is TypeError and text.startswith(f"{op}: ") and "float64" in text and "float32" in text
