"""The rows of gpu_rows.py for the operations without a ladder, and for the backward pass of linear: shapes of a GPT, a
peer of torch's for each. The peers run as torch runs them without a compiler: rope, swiglu and AdamW with master
weights are several kernels there, or have no peer."""

from functools import cache

import numpy as np

from ..ops import numpy_ops


def linear_backward(maker, dtype, M, K, N):
    def make():
        return maker.normal(dtype, M, N), maker.normal(dtype, M, K), maker.normal(dtype, N, K)

    def by_torch(dy, x, w):
        return [dy @ w, dy.T @ x, dy.sum(0)]

    def oracle(dy, x, w):                  # the first rows of dx and of dweight, all of dbias
        dx, _, dbias = numpy_ops.linear_backward(maker.exact(dy), np.zeros((M, 1)), np.zeros((N, 1)))
        dx = numpy_ops.linear_backward(maker.exact(dy[:32]), maker.exact(x[:32]), maker.exact(w))[0]
        dweight = numpy_ops.linear_backward(maker.exact(dy[:, :32]), maker.exact(x), maker.exact(w[:32]))[1]
        return dx, dweight, dbias

    grads = maker.normal(dtype, M, K), maker.normal(dtype, N, K), maker.normal(dtype, N)
    return maker.row(
        "linear_backward", dtype, f"({M}, {K}) x ({N}, {K})", make,
        lambda dy, x, w, rung: maker.ops.linear_backward(dy, x, w, kernel=rung, grads=grads), by_torch, oracle,
        {"flops": 4 * M * K * N}, sample=lambda results: [results[0][:32], results[1][:32], results[2]])


# ---------------------------------------------------------------------------------------------------------------
# norms


def rmsnorm_forward(maker, dtype, rows, C):
    out = maker.normal(dtype, rows, C), maker.normal("float32", rows)
    return maker.row(
        "rmsnorm_forward", dtype, f"({rows}, {C})", lambda: (maker.normal(dtype, rows, C), maker.normal(dtype, C)),
        lambda x, w, rung: maker.ops.rmsnorm_forward(x, w, out=out)[:1],
        lambda x, w: [maker.torch.nn.functional.rms_norm(x, (C,), w, 1e-5)],
        lambda x, w: numpy_ops.rmsnorm_forward(maker.exact(x[:32]), maker.exact(w))[:1],
        maker.bytes(dtype, 2 * rows * C))


def rmsnorm_backward(maker, dtype, rows, C):
    """Only dx is compared with the oracle, here and below: dweight and dbias are sums over all rows."""
    def make():
        dy, x, w = maker.normal(dtype, rows, C), maker.normal(dtype, rows, C), maker.normal(dtype, C)
        return dy, x, w, maker.ops.rmsnorm_forward(x, w)[1]

    def oracle(dy, x, w, _):
        dy, x, w = maker.exact(dy[:32]), maker.exact(x[:32]), maker.exact(w)
        return numpy_ops.rmsnorm_backward(dy, x, w, numpy_ops.rmsnorm_forward(x, w)[1])[:1]

    grads = maker.normal(dtype, rows, C), maker.normal(dtype, C)
    return maker.row(
        "rmsnorm_backward", dtype, f"({rows}, {C})", make,
        lambda dy, x, w, rstd, rung: maker.ops.rmsnorm_backward(dy, x, w, rstd, grads=grads)[:1],
        autograd(maker, lambda x, w: maker.torch.nn.functional.rms_norm(x, (C,), w, 1e-5), 2), oracle,
        maker.bytes(dtype, 3 * rows * C), sample=lambda results: [results[0][:32]], prepared=True)


def residual_layernorm_backward(maker, dtype, rows, C):
    torch = maker.torch

    def make():
        dh, dy, h = (maker.normal(dtype, rows, C) for _ in range(3))
        w = maker.normal(dtype, C)
        return dh, dy, h, w, *maker.ops.layernorm_forward(h, w)[1:]

    saved_by_torch = cache(lambda h, w: torch.native_layer_norm(h, (C,), w, w, 1e-5)[1:])

    def by_torch(dh, dy, h, w, *_):
        mean, rstd = saved_by_torch(h, w)
        dx, _, _ = torch.ops.aten.native_layer_norm_backward(dy, h, (C,), mean, rstd, w, w, (True, True, True))
        return [dx + dh]

    def oracle(dh, dy, h, w, *_):
        dh, dy, h, w = maker.exact(dh[:32]), maker.exact(dy[:32]), maker.exact(h[:32]), maker.exact(w)
        return numpy_ops.residual_layernorm_backward(dh, dy, h, w, *numpy_ops.layernorm_forward(h, w)[1:])[:1]

    grads = maker.normal(dtype, rows, C), maker.normal(dtype, C), maker.normal(dtype, C)
    return maker.row(
        "residual_layernorm_backward", dtype, f"({rows}, {C})", make,
        lambda *arrays, rung: maker.ops.residual_layernorm_backward(*arrays, grads=grads)[:1], by_torch, oracle,
        maker.bytes(dtype, 4 * rows * C))


# ---------------------------------------------------------------------------------------------------------------
# activations and rope


def gelu_forward(maker, dtype, rows, C):
    out = maker.normal(dtype, rows, C)
    return maker.row(
        "gelu_forward", dtype, f"({rows}, {C})", lambda: [maker.normal(dtype, rows, C)],
        lambda x, rung: [maker.ops.gelu_forward(x, out=out)],
        lambda x: [maker.torch.nn.functional.gelu(x, approximate="tanh")],
        lambda x: [numpy_ops.gelu_forward(maker.exact(x[:32]))], maker.bytes(dtype, 2 * rows * C))


def gelu_backward(maker, dtype, rows, C):
    grads = maker.normal(dtype, rows, C)
    return maker.row(
        "gelu_backward", dtype, f"({rows}, {C})", lambda: [maker.normal(dtype, rows, C) for _ in range(2)],
        lambda dy, x, rung: [maker.ops.gelu_backward(dy, x, grads=grads)],
        lambda dy, x: [maker.torch.ops.aten.gelu_backward(dy, x, approximate="tanh")],
        lambda dy, x: [numpy_ops.gelu_backward(maker.exact(dy[:32]), maker.exact(x[:32]))],
        maker.bytes(dtype, 3 * rows * C))


def swiglu_forward(maker, dtype, rows, C):
    out = maker.normal(dtype, rows, C)
    return maker.row(
        "swiglu_forward", dtype, f"({rows}, {C})", lambda: [maker.normal(dtype, rows, C) for _ in range(2)],
        lambda gate, up, rung: [maker.ops.swiglu_forward(gate, up, out=out)],
        lambda gate, up: [maker.torch.nn.functional.silu(gate) * up],
        lambda gate, up: [numpy_ops.swiglu_forward(maker.exact(gate[:32]), maker.exact(up[:32]))],
        maker.bytes(dtype, 3 * rows * C))


def swiglu_backward(maker, dtype, rows, C):
    grads = maker.normal(dtype, rows, C), maker.normal(dtype, rows, C)
    return maker.row(
        "swiglu_backward", dtype, f"({rows}, {C})", lambda: [maker.normal(dtype, rows, C) for _ in range(3)],
        lambda dy, gate, up, rung: maker.ops.swiglu_backward(dy, gate, up, grads=grads),
        autograd(maker, lambda gate, up: maker.torch.nn.functional.silu(gate) * up, 2),
        lambda *arrays: numpy_ops.swiglu_backward(*(maker.exact(x[:32]) for x in arrays)),
        maker.bytes(dtype, 5 * rows * C), prepared=True)


def rope(maker, direction, dtype, B, H, T, D):
    op, sign = f"rope_{direction}", 1 if direction == "forward" else -1
    tables = [maker.torch.from_numpy(x).to(maker.device) for x in numpy_ops.rope_tables(T, D)]

    def make():
        return maker.normal(dtype, B, H, T, D), *(x.to(getattr(maker.torch, dtype)) for x in tables)

    def by_torch(x, cos, sin):
        a, b = x.chunk(2, dim=-1)
        return [maker.torch.cat([a * cos - sign * b * sin, b * cos + sign * a * sin], dim=-1)]

    y = maker.normal(dtype, B, H, T, D)
    option = {"out" if direction == "forward" else "grads": y}
    return maker.row(
        op, dtype, f"({B}, {H}, {T}, {D})", make, lambda *arrays, rung: [getattr(maker.ops, op)(*arrays, **option)],
        by_torch, lambda x, *tables: [getattr(numpy_ops, op)(maker.exact(x[:1, :1]), *map(maker.exact, tables))],
        maker.bytes(dtype, 2 * B * H * T * D), sample=lambda results: [x[:1, :1] for x in results])


# ---------------------------------------------------------------------------------------------------------------
# what has token ids


def cross_entropy_forward(maker, dtype, rows, V):
    out = maker.normal("float32", rows), maker.normal("float32", rows)
    return maker.row(
        "cross_entropy_forward", dtype, f"({rows}, {V})", lambda: (maker.normal(dtype, rows, V), maker.ids(V, rows)),
        lambda logits, targets, rung: maker.ops.cross_entropy_forward(logits, targets, out=out)[:1],
        lambda logits, targets: [maker.torch.nn.functional.cross_entropy(logits, targets, reduction="none")],
        lambda logits, targets: numpy_ops.cross_entropy_forward(maker.exact(logits[:32]),
                                                                maker.integers(targets[:32]))[:1],
        maker.bytes(dtype, rows * V))


def cross_entropy_backward(maker, dtype, rows, V):
    def make():
        logits, targets = maker.normal(dtype, rows, V), maker.ids(V, rows)
        return maker.normal("float32", rows), logits, targets, maker.ops.cross_entropy_forward(logits, targets)[1]

    def oracle(dloss, logits, targets, _):
        logits, targets = maker.exact(logits[:32]), maker.integers(targets[:32])
        lse = numpy_ops.cross_entropy_forward(logits, targets)[1]
        return [numpy_ops.cross_entropy_backward(maker.exact(dloss[:32]), logits, targets, lse)]

    grads = maker.normal(dtype, rows, V)
    return maker.row(
        "cross_entropy_backward", dtype, f"({rows}, {V})", make,
        lambda *arrays, rung: [maker.ops.cross_entropy_backward(*arrays, grads=grads)],
        autograd(maker, lambda *given: maker.torch.nn.functional.cross_entropy(*given, reduction="none"), 2), oracle,
        maker.bytes(dtype, 2 * rows * V), prepared=True)


def embedding_forward(maker, dtype, B, T, V, C):
    """Of the table of positions all sequences read the same rows, from the cache."""
    out = maker.normal(dtype, B, T, C)
    return maker.row(
        "embedding_forward", dtype, f"({B}, {T}) of ({V}, {C})",
        lambda: (maker.ids(V, B, T), maker.normal(dtype, V, C), maker.normal(dtype, T, C)),
        lambda tokens, wte, wpe, rung: [maker.ops.embedding_forward(tokens, wte, wpe, out=out)],
        lambda tokens, wte, wpe: [maker.torch.nn.functional.embedding(tokens, wte) + wpe],
        lambda tokens, wte, wpe: [numpy_ops.embedding_forward(np.arange(T)[None], maker.exact(wte[tokens[0]]),
                                                              maker.exact(wpe))],
        maker.bytes(dtype, 2 * B * T * C), sample=lambda results: [x[:1] for x in results])


def embedding_backward(maker, dtype, B, T, V, C):
    """Of dwte the first 64 tokens are compared with the oracle."""
    def make():
        return maker.normal(dtype, B, T, C), maker.ids(V, B, T), maker.normal(dtype, V, C), maker.normal(dtype, T, C)

    def by_torch(dx, tokens, wte, wpe):
        return [maker.torch.ops.aten.embedding_dense_backward(dx, tokens, V, -1, False), dx.sum(0)]

    def oracle(dx, tokens, wte, wpe):
        some = tokens < 64
        return [numpy_ops.embedding_backward(maker.exact(dx[some])[None], maker.integers(tokens[some])[None],
                                             np.zeros((min(64, V), C)))[0]]

    grads = maker.normal(dtype, V, C), maker.normal(dtype, T, C)
    return maker.row(
        "embedding_backward", dtype, f"({B}, {T}) of ({V}, {C})", make,
        lambda *arrays, rung: maker.ops.embedding_backward(*arrays, grads=grads), by_torch, oracle,
        maker.bytes(dtype, (B * T + V + T) * C), sample=lambda results: [results[0][:64]])


# ---------------------------------------------------------------------------------------------------------------
# the optimiser


def adamw(maker, dtype, n):
    """In 16 bits with master weights in float32. torch's fused AdamW has none: it is the peer in float32 only."""
    torch, settings, step = maker.torch, dict(lr=1e-3, eps=1e-8, weight_decay=0.1), 7

    def make():
        weights, m = maker.normal("float32", n), maker.normal("float32", n)
        if dtype == "float32":
            return weights, maker.normal(dtype, n), m, m * m
        return weights.to(getattr(torch, dtype)), maker.normal(dtype, n), m, m * m, weights

    def call(param, grad, m, v, master=None, rung=None):
        maker.ops.adamw(param, grad, m, v, step, master=master, **settings)
        return [param]

    def by_torch(sets):
        def optimiser(param, grad, m, v):
            param = torch.nn.Parameter(param)
            param.grad, made = grad, torch.optim.AdamW([param], **settings, fused=True)
            made.state[param] = {"step": torch.tensor(step - 1.0, device=maker.device), "exp_avg": m, "exp_avg_sq": v}
            return made

        optimisers = [(optimiser(*arrays),) for arrays in sets]

        def step_of(optimiser):
            optimiser.step()
            return [optimiser.param_groups[0]["params"][0].detach()]

        return step_of, optimisers

    def oracle(param, grad, m, v, master=None):
        weights, grad, m, v = (maker.exact(x[:4096]) for x in (param if master is None else master, grad, m, v))
        numpy_ops.adamw(weights, grad, m, v, step, **settings)
        return [weights]

    return maker.row(
        "adamw", dtype, f"{n:,} parameters" + ("" if dtype == "float32" else ", with master weights"), make, call,
        by_torch if dtype == "float32" else None, oracle, {"bytes": 28 * n},
        sample=lambda results: [x[:4096] for x in results], in_place=True, prepared=True)


# ---------------------------------------------------------------------------------------------------------------


def autograd(maker, forward, inputs):
    """torch's own backward pass of forward(*arrays), over sets of (dy, *arrays): the gradients of those of the first
    `inputs` arrays that are floats."""
    def prepare(sets):
        graphs = []
        for dy, *arrays in sets:
            wanted = [x.detach().requires_grad_() if x.is_floating_point() else x for x in arrays[:inputs]]
            y = forward(*wanted)
            graphs.append((y, [x for x in wanted if x.requires_grad], dy.to(y.dtype)))
        return lambda y, wanted, dy: maker.torch.autograd.grad(y, wanted, dy, retain_graph=True), graphs

    return prepare
