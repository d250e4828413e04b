"""The heart of the project: every backend computes what numpy_ops.py says.

Every op, every rung of its ladder, every backend, and of the C++ one every instruction set that this CPU runs, on the
arguments of minigpt/ops/cases.py, within the error budgets of minigpt/ops/budget.py; the CUDA kernels on a GPU, where
there is one, and emulated, in float32 and in 16 bits. NumPy's own gradients are held against finite differences in
test_gradients.py, and against torch in test_judges.py.
"""

import functools
import importlib.util
import inspect
import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt import emulator
from minigpt.bench import gpu_calls
from minigpt.ops import available, budget, budget16, load, numpy_ops
from minigpt.ops import cases as all_cases
from minigpt.ops.bfloat16 import BFLOAT16


def _implementations():
    """{name: module}: NumPy, CUDA where it loads, and the C++ backend once per instruction set."""
    found = {"numpy": numpy_ops, **{name: load(name) for name in ("cuda", "emulated") if available()[name] is None}}
    try:
        from minigpt import _cpp_base
    except ImportError:
        return found
    path = inspect.getsourcefile(numpy_ops).replace("numpy_ops", "cpp_ops")
    for isa in _cpp_base.cpu_isas():
        if importlib.util.find_spec(f"minigpt._cpp_{isa}"):
            spec = importlib.util.spec_from_file_location(f"minigpt.ops.cpp_ops_{isa}", path)
            module = importlib.util.module_from_spec(spec)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MINIGPT_ISA", isa)
                spec.loader.exec_module(module)
            found[f"cpp-{isa}"] = module
    return found


IMPLEMENTATIONS = _implementations()
OPS = tuple(budget.OUTPUTS)


def having(op):
    """The implementations that have this op: all, but for the CUDA backends, which say themselves what is MISSING."""
    return {name: ops for name, ops in IMPLEMENTATIONS.items() if op not in getattr(ops, "MISSING", ())}


def _rungs(dtype, *more, beside=()):
    return [pytest.param(ops, op, {} if kernel is None else {"kernel": kernel}, *more,
                         id="-".join(filter(None, (op, kernel, name, *more))))
            for op in OPS for name, ops in having(op).items()
            for kernel in ops.kernels.get(op, (None,))
            if _takes(ops, op, kernel, dtype) and not any(_takes(ops, op, kernel, other) for other in beside)]


def _takes(ops, op, kernel, dtype):
    return ops.takes(op, kernel, dtype) if hasattr(ops, "takes") else dtype == "float32"


RUNGS = _rungs("float32") + _rungs("float16", beside=["float32"])       # those made for 16 bits alone: in float16
every_rung = pytest.mark.parametrize("ops, op, kernel", RUNGS)


def rungs_of(*chosen):
    return pytest.mark.parametrize("ops, op, kernel", [rung for rung in RUNGS if rung.values[1] in chosen])


def dtype_of(ops, op, kernel):
    """What a rung of RUNGS is tried on."""
    return "float32" if _takes(ops, op, kernel.get("kernel"), "float32") else "float16"


def deterministic(ops, op, kernel):
    """Whether a rung gives the same bits in every run: all do but the CUDA ones whose headers say that they do not."""
    return all(rung.deterministic for rung in getattr(ops, "_rungs", {}).get(op, ())
               if rung.name == kernel.get("kernel"))


# Which keyword takes the arrays to write into: "out", "grads" or none.
BUFFERS = {op: next((key for key, p in inspect.signature(getattr(numpy_ops, op)).parameters.items()
                     if key in ("out", "grads") and p.kind == p.KEYWORD_ONLY), None)
           for op in OPS}
ACCUMULATING = tuple(op for op in OPS if "accumulate" in inspect.signature(getattr(numpy_ops, op)).parameters)


@functools.cache
def cases(op, change=np.asarray):
    """[(case, its budget)]. `change` gives the arrays another layout, in which NumPy adds up in another order."""
    return [(case, budget.budget(op, budget.convert(case.arguments, change))) for case in all_cases.cases(op)]


@functools.cache
def cases16(op, dtype):
    """The same with the arrays in 16 bits."""
    return [(all_cases.Case(op, case.name, budget16.stored(case.arguments, dtype)),
             budget16.budget(op, case.arguments, dtype)) for case in budget16.cases(op, dtype)]


def enough_cases(ops, op, kernel, change=np.asarray):
    """All that the rung takes; but only small ones for the emulator, which is a hundred times slower and has them all
    in test_results_within_budget and test_16_bit_results_within_budget."""
    dtype, few = dtype_of(ops, op, kernel), ops.name == "emulated"
    return [(case, expected) for case, expected in (cases(op, change) if dtype == "float32" else cases16(op, dtype))
            if (not few or _numbers(case) < 10_000) and takes_heads(ops, op, kernel, dtype, case)]


def takes_heads(ops, op, kernel, dtype, case):
    return "attention" not in op or not hasattr(ops, "takes") or \
        ops.takes(op, kernel["kernel"], dtype, case.arguments["q"].shape[-1])


def _numbers(case):
    return sum(x.size for x in case.arguments.values() if isinstance(x, np.ndarray))


def budget_of(op, arguments, dtype):
    """The budget of a call with arrays of `dtype`, attention's with all that it has by default."""
    if dtype == "float32":
        return budget.budget(op, arguments)
    by_default = dict(causal=True, scale=None) if "attention" in op else {}
    return budget16.budget(op, by_default | budget.convert(arguments, lambda x: x.astype(np.float32)), dtype)


def check(op, case, expected, results):
    for verdict in budget.judge(op, expected, results):
        if not verdict.ok:
            pytest.fail(f"{case}: {verdict}")


def as_option(op, arrays):
    """out= or grads= with these arrays: the array itself where the op has one result, else a tuple."""
    return {BUFFERS[op]: arrays[0] if len(arrays) == 1 else tuple(arrays)}


def buffers(op, expected, make):
    return as_option(op, [None if e is None else make(e.expected.shape, e.dtype) for e in expected])


def nan_array(shape, dtype):
    """Full of what no result is: NaN, or of integers the least."""
    return np.full(shape, np.iinfo(dtype).min if np.dtype(dtype).kind == "i" else np.nan, dtype)


def same_bits(a, b):
    """None is None, and arrays are equal bit for bit (but one NaN is as good as another)."""
    if isinstance(a, np.ndarray) and a.dtype == BFLOAT16:
        return np.array_equal(a, b)
    return a is b or np.array_equal(a, b, equal_nan=True)


class Fenced:
    """Makes arrays that start at an odd place inside a larger one, to see whether something is written beside them."""
    SIZE = 67

    def __init__(self):
        self.fences = []

    def __call__(self, shape, dtype):
        n = int(np.prod(shape))
        whole = np.full(n + 2 * self.SIZE, 1234.0, dtype)
        self.fences += [whole[:self.SIZE], whole[self.SIZE + n:]]
        array = whole[self.SIZE:self.SIZE + n].reshape(shape)
        array[...] = nan_array((), array.dtype)
        return array

    def intact(self):
        return all((fence == 1234.0).all() for fence in self.fences)


# ---------------------------------------------------------------------------------------------------------------
# the same functions


def test_cpp_backend_is_there():
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler")
    assert "cpp-base" in IMPLEMENTATIONS, "the C++ kernels are not built"


@pytest.mark.parametrize("ops", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def test_every_op_in_the_same_order(ops):
    order = [name for name, f in vars(ops).items() if name in OPS and inspect.isfunction(f)]
    assert order == [op for op in OPS if op not in getattr(ops, "MISSING", ())]


def test_every_numpy_function_is_under_test():
    public = [name for name, f in vars(numpy_ops).items() if inspect.isfunction(f) and not name.startswith("_")
              and f.__module__.startswith("minigpt.ops.numpy_")]
    assert [name for name in public if name != "rope_tables"] == list(OPS)      # rope_tables makes tables, no op


@pytest.mark.parametrize("ops", [ops for ops in IMPLEMENTATIONS.values() if hasattr(ops, "MISSING")],
                         ids=lambda ops: ops.name)
def test_what_is_missing_is_said_in_one_line(ops):
    for op in ops.MISSING:
        with pytest.raises(AttributeError, match=f"^{op}: the {ops.name} backend has no mixture of experts"):
            getattr(ops, op)


@pytest.mark.parametrize("op", OPS)
def test_signatures_are_identical(op):
    for name, ops in having(op).items():
        assert inspect.signature(getattr(ops, op)) == inspect.signature(getattr(numpy_ops, op)), name


# ---------------------------------------------------------------------------------------------------------------
# the same numbers


@every_rung
def test_results_within_budget(ops, op, kernel):
    """Into arrays full of NaN, at odd addresses, where the caller gives them; nothing beside them is touched."""
    small = dtype_of(ops, op, kernel) != "float32"                 # test_16_bit_results_within_budget has them all
    for case, expected in enough_cases(ops, op, kernel) if small else cases(op):
        if BUFFERS[op] is None:
            check(op, case, expected, budget.run(ops, op, case.arguments))
            continue
        fenced = Fenced()
        given_arrays = buffers(op, expected, fenced)
        # not through budget.run, which copies the arrays: these very ones must be written
        results = getattr(ops, op)(**case.arguments, **given_arrays, **kernel)
        results = results if isinstance(results, tuple) else (results,)
        check(op, case, expected, results)
        assert fenced.intact(), f"{case}: wrote beside the arrays given"
        option = given_arrays[BUFFERS[op]]
        for result, array in zip(results, option if isinstance(option, tuple) else (option,), strict=True):
            assert result is array, f"{case}: did not return the array that was given"


RUNGS16 = [rung for dtype in ("bfloat16", "float16") for rung in _rungs(dtype, dtype)]


@pytest.mark.parametrize("ops, op, kernel, dtype", RUNGS16)
def test_16_bit_results_within_budget(ops, op, kernel, dtype):
    """And twice the same bits, but for rungs that do not promise it."""
    for case, expected in cases16(op, dtype):
        if takes_heads(ops, op, kernel, dtype, case):
            results = budget.run(ops, op, case.arguments, **kernel)
            check(op, case, expected, results)
            if deterministic(ops, op, kernel):
                again = budget.run(ops, op, case.arguments, **kernel)
                assert all(map(same_bits, results, again)), f"{case}: not the same twice"


@pytest.mark.parametrize("op", [op for op in OPS if op not in ("gelu_forward", "gelu_backward")])
def test_plain_numpy_is_accurate(op):
    """The yardstick of the others must be good itself: it stays within a few times of what rounding the inputs does.
    (Not gelu: far left, 1 + tanh leaves few digits of a number next to nothing.)"""
    for case, expected in cases(op):
        for e in filter(None, expected):
            assert e.typical <= 25, f"{case}: {e.output} is {e.typical:.3g} times less exact than it can be"


@every_rung
def test_same_results_in_new_arrays(ops, op, kernel):
    if BUFFERS[op] is None:
        pytest.skip("works in place")
    for case, expected in enough_cases(ops, op, kernel):
        here = budget.run(ops, op, case.arguments, **kernel)
        option = buffers(op, expected, nan_array)
        getattr(ops, op)(**case.arguments, **option, **kernel)
        there = option[BUFFERS[op]] if isinstance(option[BUFFERS[op]], tuple) else (option[BUFFERS[op]],)
        if deterministic(ops, op, kernel):
            assert all(map(same_bits, here, there)), f"{case}: not what goes into {BUFFERS[op]}="
        else:
            check(op, case, expected, here)
            check(op, case, expected, there)


@every_rung
def test_inputs_are_left_alone(ops, op, kernel):
    for case, _ in enough_cases(ops, op, kernel):
        arguments = budget.convert(case.arguments, np.copy)
        getattr(ops, op)(**arguments, **kernel)
        for name, x in arguments.items():
            if isinstance(x, np.ndarray) and not (op in budget.IN_PLACE and name in budget.OUTPUTS[op]):
                assert same_bits(x, case.arguments[name]), f"{case}: {name} was changed"


@every_rung
def test_any_number_of_threads_gives_the_same_bits(ops, op, kernel):
    """And so does a second run."""
    if not deterministic(ops, op, kernel):
        pytest.skip("its header says: not deterministic")
    set_num_threads = getattr(ops, "set_num_threads", lambda n: None)            # NumPy has its BLAS' own threads
    before = ops.num_threads() if hasattr(ops, "num_threads") else None
    try:
        for case, _ in enough_cases(ops, op, kernel):
            set_num_threads(1)
            first = budget.run(ops, op, case.arguments, **kernel)
            for n in (1, 2, 3) if before else (1,):
                set_num_threads(n)
                again = budget.run(ops, op, case.arguments, **kernel)
                assert all(map(same_bits, first, again)), f"{case}: not the same with {n} threads"
    finally:
        set_num_threads(before)


@pytest.mark.parametrize("ops, op, kernel", [rung for rung in RUNGS if rung.values[0].name == "emulated"])
def test_the_order_of_blocks_matters_only_where_the_header_says_so(ops, op, kernel):
    """A GPU runs blocks in any order; what gives other bits then must say that it is not deterministic, and be so."""
    arguments = attention_of_blocks(op, dtype_of(ops, op, kernel)) if "attention" in op else \
        max((case for case, _ in enough_cases(ops, op, kernel)), key=_numbers).arguments
    results = []
    for order in "forward", "reversed":
        with emulator.watch(blocks=order) as report:
            results.append(budget.run(ops, op, arguments, **kernel))
        assert not report.findings, report
    assert all(map(same_bits, *results)) == deterministic(ops, op, kernel)


def attention_of_blocks(op, dtype):
    """Several tiles of keys, far from 0: what they add to dq nearly cancels, so that rounding shows in 16 bits too."""
    rng = np.random.default_rng(3)
    q, k, v, dout = (all_cases.numbers(rng, 1, 1, T, 8, mean=mean)
                     for T, mean in ((66, 0), (200, 100), (200, 0), (66, 0)))
    arguments = budget16.stored(dict(dout=dout, q=q, k=k, v=v), "float16")
    arguments = budget.convert(arguments, lambda x: x.astype(dtype))
    out, lse = numpy_ops.attention_forward(*(arguments[name].astype(np.float32) for name in "qkv"), causal=False)
    if op == "attention_forward":
        return {name: arguments[name] for name in "qkv"} | dict(causal=False)
    return arguments | dict(out=out.astype(dtype), lse=lse, causal=False)


@every_rung
def test_any_strides(ops, op, kernel):
    """Transposed, every second element of larger arrays, and at odd addresses; the results too."""
    ways = [(change, hand_over) for change in (_transposed, _sparse, _unaligned) for hand_over in ways_to_hand_over(ops)
            if (change, hand_over) != (_unaligned, to_tensors)]                  # no tensor is at an odd address
    for change, hand_over in ways:
        for case, expected in enough_cases(ops, op, kernel, change):
            option = {} if BUFFERS[op] is None else buffers(
                op, expected, lambda shape, dtype, change=change: change(nan_array(shape, dtype)))
            given = hand_over(budget.convert(case.arguments, change) | option, ops)
            results = getattr(ops, op)(**given, **kernel)
            if op in budget.IN_PLACE:
                results = tuple(given[name] for name in budget.OUTPUTS[op])
            check(op, f"{case}, {change.__name__[1:]}, {hand_over.__name__}", expected, in_numpy(results))


def ways_to_hand_over(ops):
    """CUDA kernels are given torch's tensors, too, on the GPU if that is where they run: NumPy's arrays are copied
    there, and lose their strides."""
    return [as_they_are] + [to_tensors] * (ops.name in DEVICES and importlib.util.find_spec("torch") is not None)


DEVICES = {"cuda": "cuda", "emulated": "cpu"}


def as_they_are(arguments, ops):
    return arguments


def to_tensors(arguments, ops):
    return gpu_calls.to_tensors(arguments, DEVICES[ops.name])


def in_numpy(results):
    results = results if isinstance(results, tuple) else (results,)
    return tuple(x.cpu().numpy() if hasattr(x, "cpu") else x for x in results)


def _transposed(x):
    return np.array(x, order="F")


def _sparse(x):
    larger = nan_array([2 * n for n in x.shape], x.dtype)
    larger[tuple(slice(1, None, 2) for _ in x.shape)] = x
    return larger[tuple(slice(1, None, 2) for _ in x.shape)]


def _unaligned(x):
    bytes_ = np.zeros(x.nbytes + 1, np.uint8)
    result = bytes_[1:].view(x.dtype).reshape(x.shape)
    result[...] = x
    return result


@rungs_of("attention_forward", "attention_backward")
def test_heads_are_views_of_the_packed_projection(ops, op, kernel):
    """q, k and v as the model has them: slices of one (B, T, (H + 2 Hkv) D) array, and their gradients likewise."""
    rng, dtype = np.random.default_rng(1), dtype_of(ops, op, kernel)
    sizes = (2, 4, 2, 37, 24), (1, 3, 3, 65, 16)
    for (B, H, Hkv, T, D), hand_over in itertools.product(sizes, ways_to_hand_over(ops)):
        def heads(packed, H=H, Hkv=Hkv, D=D):
            x = packed.reshape(*packed.shape[:2], H + 2 * Hkv, D).swapaxes(1, 2)
            return x[:, :H], x[:, H:H + Hkv], x[:, H + Hkv:]

        def numbers(*shape):
            return all_cases.numbers(rng, *shape).astype(dtype)

        q, k, v = heads(numbers(B, T, (H + 2 * Hkv) * D))
        out, dout = (numbers(B, T, H * D).reshape(B, T, H, D).swapaxes(1, 2) for _ in range(2))
        if op == "attention_forward":
            arguments = dict(q=q, k=k, v=v)
            option = dict(out=(np.full_like(out, np.nan), nan_array((B, H, T), np.float32)))
        else:
            out[...], lse = numpy_ops.attention_forward(*(x.astype(np.float32) for x in (q, k, v)))
            arguments = dict(dout=dout, q=q, k=k, v=v, out=out, lse=lse)
            option = dict(grads=heads(nan_array((B, T, (H + 2 * Hkv) * D), dtype)))
        results = getattr(ops, op)(**hand_over(arguments | option, ops), **kernel)
        check(op, f"packed {(B, H, Hkv, T, D)}, {hand_over.__name__}", budget_of(op, arguments, dtype),
              in_numpy(results))


@rungs_of(*ACCUMULATING)
def test_accumulate_adds_to_parameters_only(ops, op, kernel):
    rng, dtype = np.random.default_rng(2), dtype_of(ops, op, kernel)
    for case, expected in enough_cases(ops, op, kernel):
        grads = tuple(None if e is None else nan_array(e.expected.shape, e.dtype) if e.output == "dx"
                      else all_cases.numbers(rng, *e.expected.shape).astype(e.dtype) for e in expected)
        arguments = dict(case.arguments, grads=grads, accumulate=True)
        check(op, f"{case}, accumulate", budget_of(op, arguments, dtype), budget.run(ops, op, arguments, **kernel))


@rungs_of("linear_backward", "layernorm_backward", "residual_layernorm_backward")
def test_gradients_that_are_not_asked_for(ops, op, kernel):
    for case, expected in enough_cases(ops, op, kernel):
        for missing in ((0,), (2,), (0, 2)) if op == "linear_backward" else ((2,),):
            grads = tuple(None if i in missing else nan_array(e.expected.shape, e.dtype)
                          for i, e in enumerate(expected))
            results = getattr(ops, op)(**case.arguments, grads=grads, **kernel)
            for i, (e, x) in enumerate(zip(expected, results, strict=True)):
                if i not in missing:
                    check(op, case, [e], [x])
                elif op == "linear_backward":
                    assert x is None


@rungs_of("gelu_forward", "gelu_backward", "rope_forward", "rope_backward", "residual_layernorm_backward",
          "cross_entropy_backward")
def test_in_place(ops, op, kernel):
    """Where the specification says that a result may be written over an argument."""
    over = {"gelu_forward": "x", "gelu_backward": "dy", "rope_forward": "x", "rope_backward": "dy",
            "residual_layernorm_backward": "dh", "cross_entropy_backward": "logits"}[op]
    for case, expected in enough_cases(ops, op, kernel):
        separate = budget.run(ops, op, case.arguments, **kernel)
        arguments = budget.convert(case.arguments, np.copy)
        arrays = [arguments[over], *(nan_array(e.expected.shape, e.dtype) for e in expected[1:])]
        results = getattr(ops, op)(**arguments, **as_option(op, arrays), **kernel)
        results = results if isinstance(results, tuple) else (results,)
        assert results[0] is arguments[over]
        assert all(map(same_bits, results, separate)), f"{case}: not the same over {over}"


@rungs_of("layernorm_forward", "layernorm_backward", "residual_layernorm_forward", "residual_layernorm_backward",
          "rmsnorm_forward", "rmsnorm_backward", "gelu_forward", "gelu_backward", "cross_entropy_backward")
def test_streamed_results_within_budget(ops, op, kernel):
    """Outputs that go past the caches, as only large ones do otherwise, at odd addresses."""
    if not ops.name == "cpp":
        pytest.skip("only the C++ kernels stream")
    before = ops._C.set_streaming_threshold(0)
    try:
        for case, expected in enough_cases(ops, op, kernel):
            fenced = Fenced()
            streamed = getattr(ops, op)(**case.arguments, **buffers(op, expected, fenced), **kernel)
            check(op, case, expected, streamed if isinstance(streamed, tuple) else (streamed,))
            assert fenced.intact(), f"{case}: wrote beside the arrays given"
    finally:
        ops._C.set_streaming_threshold(before)


# ---------------------------------------------------------------------------------------------------------------
# NaN and infinity


def first_case_with_columns(op):
    """The first case with several rows and columns, small enough to try each of its elements."""
    return next(case for case in all_cases.cases(op)
                if all(x.size > 8 for x in case.arguments.values() if isinstance(x, np.ndarray) and x.ndim > 1))


@every_rung
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_and_infinity_reach_what_depends_on_them(ops, op, kernel):
    """A NaN makes every result NaN that depends on that element (those that change when it is moved), and none that is
    not NaN in the specification; between the two there is freedom: 0 * NaN for a key behind the mask. With infinity
    the same holds for "not finite"."""
    def in_float64(arguments):
        with np.errstate(all="ignore"):
            return budget.run(numpy_ops, op, budget.convert(arguments, lambda a: a.astype(np.float64)))

    case, dtype = first_case_with_columns(op), dtype_of(ops, op, kernel)
    before = in_float64(case.arguments)
    for name, x in case.arguments.items():
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
            continue
        for place in (0, x.size // 2, x.size - 1):
            def moved(value, name=name, x=x, place=place):
                return dict(case.arguments, **{name: np.where(np.arange(x.size).reshape(x.shape) == place, value, x)})

            after = in_float64(moved(np.float32(x.flat[place] * 1.5 + 0.1)))
            for value, spoiled in ((np.nan, np.isnan), (np.inf, _not_finite), (-np.inf, _not_finite)):
                arguments = moved(np.float32(value))
                given = arguments if dtype == "float32" else budget16.stored(arguments, dtype)
                expected, got = in_float64(arguments), budget.run(ops, op, given, **kernel)
                for output, a, b, e, g in zip(budget.OUTPUTS[op], before, after, expected, got, strict=True):
                    if e is not None:
                        lost = np.not_equal(a, b) & spoiled(e) & ~spoiled(g)
                        at = f"{case}: {value} in {name} at {place}"
                        assert not lost.any(), f"{at} is lost on the way to {output}{np.argwhere(lost)[0]}"
                        spread = spoiled(g) & ~spoiled(e)
                        assert not spread.any(), f"{at} reaches {output}{np.argwhere(spread)[0]}"


def _not_finite(x):
    return ~np.isfinite(x)


@rungs_of("gelu_backward")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gelu_is_straight_far_out(ops, op, kernel):
    """Where x^2 and x^3 are too large for float32, the gradient is 0 on the left and 1 on the right."""
    x = np.float32([-3e38, -1e20, -1e13, 1e13, 1e20, 3e38])
    assert getattr(ops, op)(np.ones_like(x), x).tolist() == [0, 0, 0, 1, 1, 1]


@rungs_of("moe_router_forward")
@pytest.mark.parametrize("groups", [1, 4])
def test_of_equal_scores_the_first(ops, op, kernel, groups):
    """The same experts on every backend, and with NaN, which is never chosen while there is a number."""
    logits = np.zeros((3, 8), np.float32)
    logits[1, 5], logits[2, :3] = 1, np.nan
    experts = getattr(ops, op)(logits, 3, gate="sigmoid", groups=groups, active_groups=(groups + 1) // 2)[1]
    numbers = [3, 4, 5] if groups == 1 else [4, 5, 6]                     # of four pairs two without NaN are left
    assert experts.tolist() == [[0, 1, 2], [5, 0, 1], numbers]


# ---------------------------------------------------------------------------------------------------------------
# sizes that nobody thought of


def ragged(examples, **strategies):
    """A hypothesis test over sizes: the same examples in every run, no time limit for a single one."""
    def wrap(test):
        return settings(max_examples=examples, deadline=None, derandomize=True, database=None,
                        suppress_health_check=list(HealthCheck))(given(seed=st.integers(0, 999), **strategies)(test))
    return wrap


def everywhere(op, arguments):
    expected = budget.budget(op, arguments)
    sizes = {name: x.shape if isinstance(x, np.ndarray) else x for name, x in arguments.items()}
    for name, ops in having(op).items():
        for kernel in ops.kernels.get(op, (None,)):
            if not _takes(ops, op, kernel, "float32"):
                continue
            option = {} if kernel is None else {"kernel": kernel}
            check(op, f"{name} {kernel} {sizes}", expected, budget.run(ops, op, arguments, **option))


@ragged(25, B=st.integers(1, 2), groups=st.integers(1, 2), Hkv=st.integers(1, 2), Tq=st.integers(1, 100),
        Tk=st.integers(1, 100), D=st.integers(1, 80), causal=st.booleans(), peaked=st.booleans())
def test_ragged_attention(B, groups, Hkv, Tq, Tk, D, causal, peaked, seed):
    rng = np.random.default_rng(seed)
    q, k, v = all_cases.attention_inputs(rng, B, groups * Hkv, Hkv, Tq, Tk, D, peaked)
    everywhere("attention_forward", dict(q=q, k=k, v=v, causal=causal))
    out, lse = numpy_ops.attention_forward(q, k, v, causal)
    dout = all_cases.numbers(rng, *q.shape, mean=0.1)
    everywhere("attention_backward", dict(dout=dout, q=q, k=k, v=v, out=out, lse=lse, causal=causal))


@ragged(30, rows=st.integers(1, 70), C=st.integers(2, 300))
def test_ragged_norms(rows, C, seed):
    rng = np.random.default_rng(seed)
    x, dy, weight, bias = (all_cases.numbers(rng, *shape) for shape in ((rows, C), (rows, C), (C,), (C,)))
    everywhere("layernorm_forward", dict(x=x, weight=weight, bias=bias))
    _, mean, rstd = numpy_ops.layernorm_forward(x, weight, bias)
    everywhere("layernorm_backward", dict(dy=dy, x=x, weight=weight, mean=mean, rstd=rstd))
    everywhere("rmsnorm_forward", dict(x=x, weight=weight))
    everywhere("rmsnorm_backward", dict(dy=dy, x=x, weight=weight, rstd=numpy_ops.rmsnorm_forward(x, weight)[1]))


@ragged(20, rows=st.integers(1, 80), K=st.integers(1, 150), N=st.integers(1, 130))
def test_ragged_linear(rows, K, N, seed):
    rng = np.random.default_rng(seed)
    x, dy, weight, bias = (all_cases.numbers(rng, *shape) for shape in ((rows, K), (rows, N), (N, K), (N,)))
    everywhere("linear_forward", dict(x=x, weight=weight, bias=bias))
    everywhere("linear_gelu_forward", dict(x=x, weight=weight, bias=bias))
    everywhere("linear_backward", dict(dy=dy, x=x, weight=weight))


@ragged(20, rows=st.integers(1, 60), V=st.integers(1, 400))
def test_ragged_cross_entropy(rows, V, seed):
    rng = np.random.default_rng(seed)
    logits, targets = all_cases.numbers(rng, rows, V, spread=3), rng.integers(0, V, rows)
    targets[rng.random(rows) < 0.2] = -100
    everywhere("cross_entropy_forward", dict(logits=logits, targets=targets))
    lse = numpy_ops.cross_entropy_forward(logits, targets)[1]
    everywhere("cross_entropy_backward", dict(dloss=0.1, logits=logits, targets=targets, lse=lse))


@ragged(30, n=st.integers(1, 3000))
def test_ragged_elementwise(n, seed):
    rng = np.random.default_rng(seed)
    x, y, z = (all_cases.numbers(rng, n, spread=4) for _ in range(3))
    everywhere("gelu_forward", dict(x=x))
    everywhere("gelu_backward", dict(dy=y, x=x))
    everywhere("swiglu_forward", dict(gate=x, up=y))
    everywhere("swiglu_backward", dict(dy=z, gate=x, up=y))
    everywhere("adamw", dict(param=x, grad=y, m=z, v=z * z, step=2, lr=0.1, weight_decay=0.1))
    everywhere("squared_norm", dict(x=x))


@pytest.mark.skipif(len(IMPLEMENTATIONS) == 1 or not hasattr(os, "fork"), reason="needs the C++ kernels and fork")
def test_a_forked_process_computes_on_its_own():
    """Threads do not survive a fork; waiting for them would hang the data workers of every loader."""
    script = """
import os, numpy as np, minigpt
ops, x = minigpt.ops.load("cpp"), np.ones((512, 768), np.float32)
minigpt.set_num_threads(2)
ops.gelu_forward(x)
child = os.fork()
if not child:
    ops.gelu_forward(x)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
