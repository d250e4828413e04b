"""minigpt.ops.torch_ops: the kernels as operators of torch. That these compute the right numbers is test_mirror.py's to
say; here it is that torch gets them: gradients, shapes without data, compiled graphs, dtypes, devices, shards."""

import os
import socket

import numpy as np
import pytest

from minigpt.ops import cases, numpy_ops, why_not

torch = pytest.importorskip("torch")
F = torch.nn.functional

from minigpt.ops import torch_ops  # noqa: E402

DEVICES = ["cpu"] + ["cuda"] * (why_not("cuda") is None and torch.cuda.is_available())


def tensors(shapes, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3).to(device, dtype).requires_grad_()
            for shape in shapes]


def rope_tables(dtype, device="cpu"):
    return [torch.from_numpy(x).to(device, dtype) for x in numpy_ops.rope_tables(6, 8)]


def torch_rope(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def torch_attention(q, k, v, causal=True, scale=None):
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask if causal else None, scale=scale, enable_gqa=True)


TARGETS = torch.tensor([[3, 0, -100], [10, 1, 2]])

# By op: the shapes of the arguments with gradients, the call on them, and the same in plain torch.
CALLS = {
    "layernorm": ([(2, 3, 8), (8,), (8,)], torch_ops.layernorm, lambda x, w, b: F.layer_norm(x, w.shape, w, b)),
    "layernorm without bias": ([(5, 7), (7,)], torch_ops.layernorm, lambda x, w: F.layer_norm(x, w.shape, w)),
    "rmsnorm": ([(2, 3, 8), (8,)], torch_ops.rmsnorm, lambda x, w: F.rms_norm(x, w.shape, w, 1e-5)),
    "residual_layernorm": ([(2, 3, 8), (2, 3, 8), (8,), (8,)], torch_ops.residual_layernorm,
                           lambda x, r, w, b: (x + r, F.layer_norm(x + r, w.shape, w, b))),
    "gelu": ([(3, 9)], torch_ops.gelu, lambda x: F.gelu(x, approximate="tanh")),
    "swiglu": ([(3, 9), (3, 9)], torch_ops.swiglu, lambda gate, up: F.silu(gate) * up),
    "rope": ([(2, 3, 6, 8)], lambda x: torch_ops.rope(x, *rope_tables(x.dtype, x.device)),
             lambda x: torch_rope(x, *rope_tables(x.dtype, x.device))),
    "attention": ([(2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)], torch_ops.attention, torch_attention),
    "attention, not causal": ([(1, 2, 5, 8), (1, 2, 7, 8), (1, 2, 7, 8)],
                              lambda q, k, v: torch_ops.attention(q, k, v, False, 0.3),
                              lambda q, k, v: torch_attention(q, k, v, False, 0.3)),
    "cross_entropy": ([(2, 3, 11)], lambda x: torch_ops.cross_entropy(x, TARGETS.to(x.device)),
                      lambda x: F.cross_entropy(x.flatten(0, 1), TARGETS.flatten().to(x.device),
                                                reduction="none").reshape(2, 3)),
}
every_call = pytest.mark.parametrize("name", CALLS)
# The operators themselves, with all of their arguments: (operator, arguments).
OPERATORS = [getattr(torch_ops, f"{op}_{way}") for op in
             ("layernorm", "rmsnorm", "residual_layernorm", "gelu", "swiglu", "rope", "attention", "cross_entropy")
             for way in ("forward", "backward")]


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def gradients(function, arguments, seed=1):
    """The results, and the gradients of their sum weighted at random."""
    results = as_tuple(function(*arguments))
    weights = tensors([x.shape for x in results], results[0].dtype, results[0].device, seed)
    return [*results, *torch.autograd.grad(sum((x * w.detach()).sum() for x, w in zip(results, weights, strict=True)),
                                           arguments)]


@every_call
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_as_torch_computes_it(name, device, dtype):
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("no kernel in float64")
    shapes, ours, theirs = CALLS[name]
    arguments = tensors(shapes, dtype, device)
    exact = gradients(theirs, [x.detach().double().requires_grad_() for x in arguments])
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for got, expected in zip(gradients(ours, arguments), exact, strict=True):
        statistic = name == "cross_entropy" and got.shape == TARGETS.shape and dtype in torch_ops.SIXTEEN_BITS
        assert got.dtype == (torch.float32 if statistic else dtype) and got.device.type == device
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@every_call
def test_gradcheck(name):
    shapes, ours, _ = CALLS[name]
    assert torch.autograd.gradcheck(ours, tensors(shapes, torch.float64))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator._name.removeprefix("minigpt::"))
def test_opcheck(operator, device):
    """torch's own suite: the schema, the gradients' registration, shapes without data, traced graphs."""
    name = operator._name.removeprefix("minigpt::")
    for case in cases.cases(name)[1:4]:
        arguments = [torch.from_numpy(x).to(device) if isinstance(x, np.ndarray) else x
                     for x in case.arguments.values()]
        if name == "cross_entropy_backward":
            arguments[0] = torch.full(arguments[2].shape, 0.3, device=device)
        if name.startswith("cross_entropy"):
            arguments.append(-100)
        if name.startswith("attention"):
            order = ("dout", "q", "k", "v", "out", "lse", "causal", "scale")
            arguments = dict(zip(case.arguments, arguments, strict=True))
            arguments = [arguments[key] for key in order if key in arguments]
        if name.endswith("forward"):
            arguments = [x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() and i < 4
                         and not (name == "rope_forward" and i) else x for i, x in enumerate(arguments)]
        torch.library.opcheck(operator, tuple(arguments))


@every_call
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_without_graph_breaks(name, device):
    shapes, ours, _ = CALLS[name]
    arguments = tensors(shapes, device=device)

    def step(*arguments):
        return [x * 2 for x in as_tuple(ours(*arguments))]

    torch.compiler.reset()                    # one function with ten meanings would reach the limit of recompilations
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, expected in zip(gradients(lambda *x: tuple(compiled(*x)), arguments),
                             gradients(lambda *x: tuple(step(*x)), arguments), strict=True):
        assert torch.equal(got, expected)


def test_autocast():
    """Attention in the lower dtype, norms and the loss in float32, as torch does with its own."""
    x, weight = tensors([(2, 2, 4, 8), (8,)])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch_ops.attention(x, x.bfloat16(), x).dtype == torch.bfloat16
        assert torch_ops.layernorm(x.bfloat16(), weight).dtype == torch.float32
        assert torch_ops.rmsnorm(x.bfloat16(), weight).dtype == torch.float32
        assert [y.dtype for y in torch_ops.residual_layernorm(x, x.bfloat16(), weight)] == [torch.float32] * 2
        assert torch_ops.swiglu(x.bfloat16(), x).dtype == torch.float32
        assert torch_ops.gelu(x.bfloat16()).dtype == torch.bfloat16
        assert torch_ops.cross_entropy(x.bfloat16(), torch.zeros(2, 2, 4, dtype=torch.int64)).dtype == torch.float32
        torch_ops.layernorm(x.bfloat16(), weight).sum().backward()
    assert weight.grad.dtype == torch.float32
    with pytest.raises(TypeError, match="weight is float32"):
        torch_ops.layernorm(x.double(), weight)


def test_tensors_are_not_copied():
    """The arrays that the kernels see lie where the tensors do, heads of a packed projection among them."""
    packed = torch.randn(2, 5, 3 * 16)
    q = packed.view(2, 5, 6, 8).transpose(1, 2)[:, 2:4]
    array = torch_ops._array(q)
    assert array.ctypes.data == q.data_ptr() and array.strides == tuple(4 * n for n in q.stride())
    result = np.ones((3, 4), np.float32)
    assert torch_ops._tensor(result, torch.float32).data_ptr() == result.ctypes.data


def _shards(rank, port, failures):
    """One of two processes, each of which computes half: along the batch, then along the heads."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))

    def run(axis, function, cut, whole):
        """The gradients of all arguments, with the arguments `cut` along the axis, and those `whole`."""
        expected = gradients(function, [*cut, *whole])
        shards = [distribute_tensor(x.detach(), mesh, [Shard(axis)]).requires_grad_() for x in cut]
        copies = [distribute_tensor(x.detach(), mesh, [Replicate()]).requires_grad_() for x in whole]
        results = as_tuple(function(*shards, *copies))
        if any(x.placements != (Shard(axis),) for x in results):
            failures.put(f"{function.__name__}: cut along {axis}, the results are {[x.placements for x in results]}")
        weights = tensors([x.shape for x in results], seed=1)
        sums = sum((x * distribute_tensor(w.detach(), mesh, [Shard(axis)])).sum()
                   for x, w in zip(results, weights, strict=True))
        sums.full_tensor().backward()
        got = [x.full_tensor() for x in results] + [x.grad.full_tensor() for x in (*shards, *copies)]
        for a, b in zip(got, expected, strict=True):
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-5):
                failures.put(f"{function.__name__}, cut along {axis}: off by {(a - b).abs().max():.3g}")

    heads = tensors([(2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)])
    rows = tensors([(2, 4, 8), (2, 4, 8)])
    weight, bias = tensors([(8,), (8,)])
    for axis in (0, 1):
        run(axis, torch_ops.attention, heads, [])
        run(axis, torch_ops.layernorm, rows[:1], [weight, bias])
        run(axis, torch_ops.rmsnorm, rows[:1], [weight])
        run(axis, torch_ops.residual_layernorm, rows, [weight, bias])
        run(axis, torch_ops.gelu, rows[:1], [])
        run(axis, torch_ops.swiglu, rows, [])
        tables = [distribute_tensor(x, mesh, [Replicate()]) for x in rope_tables(torch.float32)]
        run(axis, lambda x, tables=tables: torch_ops.rope(x, *tables) if hasattr(x, "placements")
            else torch_ops.rope(x, *(t.to_local() for t in tables)), tensors([(2, 4, 6, 8)]), [])
        targets = torch.arange(8).reshape(2, 4)
        run(axis, lambda x, targets=targets, axis=axis: torch_ops.cross_entropy(
            x, distribute_tensor(targets, mesh, [Shard(axis)]) if hasattr(x, "placements") else targets), rows[:1], [])
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without torch.distributed")
def test_shards():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    torch.multiprocessing.spawn(_shards, (port, failures), nprocs=2)
    found = []
    while not failures.empty():
        found.append(failures.get())
    assert not found


def test_memory_can_be_freed_by_hand_after_an_op():
    """FSDP does so with the weights of a layer that is done."""
    weight = torch.ones(8)
    torch_ops.rmsnorm(torch.ones(2, 8), weight)
    weight.untyped_storage().resize_(0)
