"""What minigpt/ops/cuda_ops.py does beyond the mirror, emulated: master weights, the way to the vendor's library."""

import numpy as np
import pytest

from minigpt import emulator, ops
from minigpt.ops import budget16, cuda_call, numpy_ops
from minigpt.ops.bfloat16 import to_float32

reason = ops.why_not("emulated")
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def weights(rng, n):
    return [rng.normal(size=n).astype(np.float32) for _ in range(3)] + [rng.random(n).astype(np.float32)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_master_weights_move_where_the_parameters_could_not(dtype):
    """A hundred steps, each of which is below half of the last digit of parameters in 16 bits."""
    rng = np.random.default_rng(0)
    master, grad, m, v = weights(rng, 1003)
    grad = budget16.rounded(grad, dtype)
    expected = [x.astype(np.float64) for x in (master, m, v)]
    param = budget16.to_stored(master, dtype)
    before = param.copy()
    for step in range(1, 101):
        settings = dict(step=step, lr=1e-6, weight_decay=0.1, grad_scale=0.5)
        ops.load("emulated").adamw(param, budget16.to_stored(grad, dtype), m, v, master=master, **settings)
        numpy_ops.adamw(expected[0], grad.astype(np.float64), *expected[1:], **settings)
    for got, exact in zip((master, m, v), expected, strict=True):
        np.testing.assert_allclose(got, exact, rtol=2e-5, atol=1e-9)
    assert (param == budget16.to_stored(master, dtype)).all()
    assert not (param == before).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("backend", ["numpy", "cpp", "emulated"])
def test_master_weights_take_the_step_that_float32_parameters_take(backend, dtype):
    if why := ops.why_not(backend):
        pytest.skip(why)
    rng, adamw = np.random.default_rng(1), ops.load(backend).adamw
    master, grad, m, v = weights(rng, 50)
    alone = [x.copy() for x in (master, m, v)]
    param, grad = (budget16.to_stored(x, dtype) for x in (np.zeros(50, np.float32), grad))
    adamw(alone[0], to_float32(grad), *alone[1:], step=3, lr=0.01)
    adamw(param, grad, m, v, step=3, lr=0.01, master=master)
    assert all((a == b).all() for a, b in zip((master, m, v), alone, strict=True))
    assert (param == budget16.to_stored(master, dtype)).all()


@pytest.mark.parametrize("backend", ["numpy", "cpp", "emulated"])
def test_refuses_master_weights_that_do_not_fit(backend):
    adamw = ops.load(backend).adamw
    rng = np.random.default_rng(2)
    master, grad, m, v = weights(rng, 8)
    param, grad = master.astype(np.float16), grad.astype(np.float16)
    with pytest.raises(TypeError, match="adamw: master is float16, but m is float32"):
        adamw(param, grad, m, v, 1, 0.1, master=param)
    with pytest.raises(ValueError, match="adamw: m has shape"):
        adamw(param[:7], grad[:7], m, v, 1, 0.1, master=master)
    with pytest.raises(TypeError, match="adamw: m is float32, but param is float16"):
        adamw(param, grad, m, v, 1, 0.1)


@pytest.mark.parametrize("op, rungs, default", [
    ("attention_forward", {"pipelined", "hopper"}, "pipelined"),
    ("attention_backward", {"tensor_cores", "fused"}, "tensor_cores")])
def test_what_is_random_or_has_never_run_is_not_the_default(op, rungs, default):
    """Even on the GPU that has them all."""
    ladder = cuda_call.find_rungs([op])[op]
    assert rungs <= {rung.name for rung in ladder if rung.runs_on(90)}
    assert cuda_call.choose(op, ladder, None, "bfloat16", 64).name == default
    for name in rungs:
        assert cuda_call.choose(op, ladder, name, "bfloat16", 64).name == name


def test_broadcast_heads_are_copied_for_the_copy_engine():
    """The Hopper rung, which takes heads in multiples of 8, hands their strides to the engine, which refuses 0."""
    call = cuda_call.Call(cuda_call.Emulator(), "attention_forward")
    heads = np.broadcast_to(np.arange(32, dtype=np.float16).reshape(1, 1, 2, 16), (3, 2, 2, 16))
    assert call.heads(heads) is heads
    copied = call.heads(heads, multiple=8)
    assert 0 not in copied.strides and (copied == heads).all()
    assert call.heads(heads[:1, :1], multiple=8).base is heads.base               # of one: its stride is never used


@pytest.mark.parametrize("accumulate", [False, True])
def test_the_vendors_library_is_called_as_the_kernels_are(accumulate):
    """On a GPU torch's tensors take this way; here it is tried on the CPU."""
    torch = pytest.importorskip("torch")
    emulated = ops.load("emulated")
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, dy = (torch.randn(*shape, generator=generator) for shape in ((2, 5, 7), (3, 7), (3,), (2, 5, 3)))
    exact = x.double() @ weight.double().T + bias.double()
    for out in (None, torch.full((2, 5, 3), torch.nan)):
        y = emulated._vendor_forward(torch, x, weight, bias, out)
        assert out is None or y is out
        torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)

    before = torch.ones if accumulate else lambda *shape: torch.full(shape, torch.nan)
    grads = torch.full((2, 5, 7), torch.nan), before(3, 7), before(3)
    arguments = [a.numpy() for a in (dy, x, weight)]
    expected = numpy_ops.linear_backward(*arguments, grads=tuple(g.numpy().copy() for g in grads),
                                         accumulate=accumulate)
    emulated._vendor_backward(torch, dy, x, weight, *grads, accumulate)
    for got, e in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, e, rtol=1e-5, atol=1e-5)


def test_autograd_writes_nothing_down():
    """Weights of a torch model require gradients; results of an op have none, and may be written into."""
    torch = pytest.importorskip("torch")
    x, weight, bias, dy = (torch.ones(*shape, requires_grad=True) for shape in ((2, 3), (4, 3), (4,), (2, 4)))
    emulated = ops.load("emulated")
    for out in (None, torch.empty(2, 4)):
        assert not emulated._vendor_forward(torch, x, weight, bias, out).requires_grad
    grads = torch.empty(2, 3), torch.empty(4, 3), torch.empty(4)
    emulated._vendor_backward(torch, dy, x, weight, *grads, False)
    assert grads[1].tolist() == [[2] * 3] * 4 and not any(grad.requires_grad for grad in grads)


def test_bfloat16_of_numpy_goes_through():
    x = np.float32([[1.0, 2.5, -3.0]])
    y = ops.load("emulated").gelu_forward(budget16.to_stored(x, "bfloat16"))
    np.testing.assert_allclose(to_float32(y), numpy_ops.gelu_forward(x), rtol=2.0**-8)


def counted(op, *arguments, kernel):
    """The lines of a kernel that touch memory, and what they move, as the emulator counts them."""
    with emulator.watch() as report:
        getattr(ops.load("emulated"), op)(*arguments, kernel=kernel)
    assert not report.findings
    return [line for line in report.lines if line.bytes >= 4096]          # not a number a row, or a block


def test_the_ladder_of_layernorm_is_what_its_headers_say():
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(64, 768)).astype(np.float32), np.ones(768, np.float32)
    naive, warp, packs = (counted("layernorm_forward", x, weight, kernel=kernel)
                          for kernel in ("naive", "warp_per_row", "vectorised"))
    assert max(line.waste for line in naive) == 8                         # a sector of 32 bytes for each float
    assert all(line.waste == 1 for line in warp + packs)
    reads_of_x = [sum(line.sectors for line in lines if line.kind == "read") * 32 / x.nbytes for lines in (warp, packs)]
    assert reads_of_x == [4, 2]                                           # x thrice or once, and the weight
    asked = [sum(line.requests for line in lines if line.kind == "write") for lines in (warp, packs)]
    assert asked[0] == 4 * asked[1]                                       # 16 bytes a thread

    _, mean, rstd = numpy_ops.layernorm_forward(x, weight)
    two_passes, partials = (counted("layernorm_backward", x, x, weight, mean, rstd, kernel=kernel)
                            for kernel in ("two_passes", "partials"))
    rows = [sum(line.bytes for line in lines if line.kind == "read" and "row.cuh" in line.place) for lines in
            (two_passes, partials)]
    assert rows == [0, 2 * x.nbytes]                                      # x and dy, once
    assert sum(line.bytes for line in two_passes if line.kind == "read" and line.space == "global") > 6 * x.nbytes


def test_linear_on_tensor_cores_has_no_bank_conflicts():
    rng = np.random.default_rng(4)
    x, weight, dy = (budget16.to_stored(rng.normal(size=shape).astype(np.float32), "bfloat16")
                     for shape in ((128, 64), (128, 64), (128, 128)))
    lines = (counted("linear_forward", x, weight, kernel="tensor_cores")
             + counted("linear_backward", dy, x, weight, kernel="tensor_cores"))
    shared = [line for line in lines if line.space == "shared"]
    assert len(shared) >= 6 and not any(line.conflicts for line in shared)


@pytest.mark.parametrize("backend", ["numpy", "emulated"])
def test_nothing_to_do(backend):
    """Arrays without elements, for which a grid would have no blocks."""
    o, x = ops.load(backend), np.zeros((0, 5), np.float32)
    assert o.gelu_forward(x).shape == o.gelu_backward(x, x).shape == o.swiglu_forward(x, x).shape == x.shape
    assert [d.shape for d in o.swiglu_backward(x, x, x)] == [x.shape] * 2
    o.adamw(x.copy(), x, x.copy(), x.copy(), 1, 0.1)
    assert o.squared_norm(x) == 0
