"""Every operation side by side with torch, and every rung of the ladders.

Ours writes into outputs that are reused from call to call, as the model does; "allocating" is ours making its outputs
afresh, as torch does. The inputs are the same arrays for both. Work is counted by its useful part: a causal attention
has half the products of a full one, and bytes are those of reading each input and writing each output once.
"""

import math
from functools import partial

import numpy as np

from ..config import ModelConfig
from ..ops.memory import aligned_empty
from .timing import compare, normal

ATTENTION_SHAPES = ((4, 12, 256, 64), (4, 12, 1024, 64), (1, 12, 4096, 64))
LINEAR_SHAPES = ((1024, 768, 2304), (1024, 768, 768), (1024, 768, 3072), (1024, 3072, 768), (1024, 768, 50257))
EXPERT_SHAPES = ((2048, 8, 512, 1024), (16, 8, 512, 1024))  # rows, experts, C, F: training, and generating
NORM_SHAPES = ((4096, 768), (8192, 1600))
CACHE = 28e6  # bytes: what is smaller may stay in the L3 from call to call


def rows(ops, torch, options):
    """Yields the rows of the table, each a dict with the work, its size, and a summary for each variant. torch is the
    module, or None where it is not installed."""
    tiny, seconds = options["tiny"], options["seconds"]
    rng = np.random.default_rng(0)
    # First, and longer: torch makes arrays of 800 MB, which takes it several times as long in a heap that others used.
    yield _cross_entropy(ops, torch, rng, (8, 50) if tiny else (4096, 50257), 6 * seconds)
    for shape in [(1, 2, 33, 16)] if tiny else ATTENTION_SHAPES:
        yield from _attention(ops, torch, rng, shape, seconds)
    for shape in [(8, 24, 40)] if tiny else LINEAR_SHAPES:
        yield from _linear(ops, torch, rng, shape, seconds)
    for shape in [(8, 3, 16, 24)] if tiny else EXPERT_SHAPES:
        yield from _experts(ops, torch, rng, shape, seconds)
    for shape in [(8, 24)] if tiny else NORM_SHAPES:
        yield from _layernorm(ops, torch, rng, shape, seconds)
    yield from _gelu(ops, torch, rng, (8, 24) if tiny else (1024, 3072), seconds)
    yield _adamw(ops, torch, rng, ModelConfig.preset("char" if tiny else "gpt2"), seconds)


def ladder_rows(ops, options):
    """Yields a row for every rung of every ladder: {"ladder": operation, "rung": name, ...}."""
    tiny, rng = options["tiny"], np.random.default_rng(0)
    for operation, names in ops.kernels.items():
        shape = LADDER_SHAPES[operation][0 if tiny else 1]
        work, size, call = LADDERS[operation](ops, rng, shape)
        calls = {name: partial(call, name) for name in names}
        for name, summary in compare(calls, options["seconds"] * len(names) / 2).items():
            yield {"ladder": operation, "rung": name, "work": work, **size, "ours": summary}


def _size(*, flops=None, bytes=None):
    """How much work a row is, and which of the machine's limits bounds it."""
    if flops is not None:
        return {"flops": flops, "limit": "fma"}
    return {"bytes": bytes, "limit": "l3" if bytes < CACHE else "memory"}


def _row(work, size, variants, seconds, peer):
    return {"work": work, "peer": peer, **size, **compare({k: v for k, v in variants.items() if v}, seconds)}


# ---------------------------------------------------------------------------------------------------------------
# one function an operation: the arrays, ours, torch's


def _attention_flops(shape):
    B, H, T, D = shape
    return 2 * B * H * T * T * D  # two products of 2 T T D FLOPs, of which the causal mask leaves half


def _attention(ops, torch, rng, shape, seconds):
    q, k, v, dout = (normal(rng, *shape) for _ in range(4))
    out, lse = aligned_empty(shape), aligned_empty(shape[:3])
    grads = aligned_empty(shape), aligned_empty(shape), aligned_empty(shape)
    forward = backward = None
    if torch:
        attention = torch.nn.functional.scaled_dot_product_attention
        inputs = [torch.from_numpy(x) for x in (q, k, v)]
        leaves = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
        torch_dout = torch.from_numpy(dout)

        def forward():
            with torch.no_grad():
                return attention(*inputs, is_causal=True)

        def backward():
            return torch.autograd.grad(attention(*leaves, is_causal=True), leaves, torch_dout)

    def ours_both():
        ops.attention_forward(q, k, v, out=(out, lse))
        ops.attention_backward(dout, q, k, v, out, lse, grads=grads)

    def allocating_both():
        fresh = ops.attention_forward(q, k, v)
        ops.attention_backward(dout, q, k, v, *fresh)

    flops, name = _attention_flops(shape), _numbers(shape)
    yield _row(f"attention forward, causal {name}", _size(flops=flops), {
        "ours": lambda: ops.attention_forward(q, k, v, out=(out, lse)),
        "allocating": lambda: ops.attention_forward(q, k, v),
        "torch": forward,
    }, seconds, "SDPA")
    yield _row(f"attention forward + backward {name}", _size(flops=3.5 * flops), {
        "ours": ours_both, "allocating": allocating_both, "torch": backward,
    }, seconds, "SDPA")


def _linear(ops, torch, rng, shape, seconds):
    rows, K, N = shape
    x, dy, weight = normal(rng, rows, K), normal(rng, rows, N), normal(rng, N, K, std=0.02)
    bias = normal(rng, N) if N < 10000 else None  # the head has none
    y = aligned_empty((rows, N))
    grads = aligned_empty((rows, K)), aligned_empty((N, K)), None if bias is None else aligned_empty((N,))
    forward = backward = None
    if torch:
        linear = torch.nn.functional.linear
        inputs = [torch.from_numpy(a) for a in (x, weight, bias) if a is not None]
        leaves = [torch.from_numpy(a).requires_grad_() for a in (x, weight, bias) if a is not None]
        torch_y, torch_dy = linear(*leaves), torch.from_numpy(dy)

        def forward():
            with torch.no_grad():
                return linear(*inputs)

        def backward():
            return torch.autograd.grad(torch_y, leaves, torch_dy, retain_graph=True)

    flops, name = 2 * rows * K * N, f"{rows} x {K} x {N}"
    no_bias = (None, None, None) if bias is not None else (aligned_empty((rows, K)), aligned_empty((N, K)), None)
    yield _row(f"linear forward {name}", _size(flops=flops), {
        "ours": lambda: ops.linear_forward(x, weight, bias, out=y),
        "allocating": lambda: ops.linear_forward(x, weight, bias),
        "torch": forward,
    }, seconds, "F.linear")
    yield _row(f"linear backward {name}", _size(flops=2 * flops), {
        "ours": lambda: ops.linear_backward(dy, x, weight, grads=grads),
        "allocating": lambda: ops.linear_backward(dy, x, weight, grads=None if bias is not None else no_bias),
        "torch": backward,
    }, seconds, "F.linear")


def _experts(ops, torch, rng, shape, seconds):
    """Segments as unequal as those of a router that nobody balances; torch goes through the same segments."""
    R, E, C, F = shape
    x, dy, weight = normal(rng, R, C), normal(rng, R, F), normal(rng, E, F, C, std=0.02)
    offsets = np.searchsorted(np.sort(rng.random(R)) ** 2, np.arange(E + 1) / E)
    y, grads = aligned_empty((R, F)), (aligned_empty((R, C)), aligned_empty((E, F, C)))
    forward = backward = None
    if torch:
        counts, torch_dy = np.diff(offsets).tolist(), torch.from_numpy(dy)
        inputs, leaves = ([torch.from_numpy(a).requires_grad_(grad) for a in (x, weight)] for grad in (False, True))

        def through(x, weight):
            parts = zip(x.split(counts), weight, strict=True)
            return torch.cat([torch.nn.functional.linear(part, w) for part, w in parts])

        def forward():
            return through(*inputs)

        def backward():
            return torch.autograd.grad(through(*leaves), leaves, torch_dy)

    def both():
        ops.grouped_linear_forward(x, weight, offsets, out=y)
        ops.grouped_linear_backward(dy, x, weight, offsets, grads=grads)

    name = f"{R} rows, {E} experts {C} x {F}"
    yield _row(f"experts' linear forward {name}", _size(flops=2 * R * C * F), {
        "ours": lambda: ops.grouped_linear_forward(x, weight, offsets, out=y), "torch": forward,
    }, seconds, "F.linear of each")
    yield _row(f"experts' linear forward + backward {name}", _size(flops=6 * R * C * F), {
        "ours": both, "torch": backward,
    }, seconds, "F.linear of each")


def _layernorm(ops, torch, rng, shape, seconds):
    C = shape[1]
    x, dy, weight, bias = normal(rng, *shape), normal(rng, *shape), normal(rng, C), normal(rng, C)
    out = aligned_empty(shape), aligned_empty(shape[:1]), aligned_empty(shape[:1])
    grads = aligned_empty(shape), aligned_empty((C,)), aligned_empty((C,))
    forward = backward = None
    if torch:
        layer_norm = torch.nn.functional.layer_norm
        inputs = [torch.from_numpy(a) for a in (x, weight, bias)]
        leaves = [torch.from_numpy(a).requires_grad_() for a in (x, weight, bias)]
        torch_dy = torch.from_numpy(dy)

        def forward():
            with torch.no_grad():
                return layer_norm(inputs[0], (C,), *inputs[1:])

        def backward():
            return torch.autograd.grad(layer_norm(leaves[0], (C,), *leaves[1:]), leaves, torch_dy)

    def ours_both():
        ops.layernorm_forward(x, weight, bias, out=out)
        ops.layernorm_backward(dy, x, weight, *out[1:], grads=grads)

    def allocating_both():
        _, mean, rstd = ops.layernorm_forward(x, weight, bias)
        ops.layernorm_backward(dy, x, weight, mean, rstd)

    yield _row(f"layernorm forward {_numbers(shape)}", _size(bytes=2 * x.nbytes), {
        "ours": lambda: ops.layernorm_forward(x, weight, bias, out=out),
        "allocating": lambda: ops.layernorm_forward(x, weight, bias),
        "torch": forward,
    }, seconds, "F.layer_norm")
    yield _row(f"layernorm forward + backward {_numbers(shape)}", _size(bytes=5 * x.nbytes), {
        "ours": ours_both, "allocating": allocating_both, "torch": backward,
    }, seconds, "F.layer_norm")


def _gelu(ops, torch, rng, shape, seconds):
    x, dy = normal(rng, *shape), normal(rng, *shape)
    y, dx = aligned_empty(shape), aligned_empty(shape)
    forward = backward = None
    if torch:
        gelu = torch.nn.functional.gelu
        torch_x, leaf, torch_dy = torch.from_numpy(x), torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)
        torch_y = gelu(leaf, approximate="tanh")

        def forward():
            with torch.no_grad():
                return gelu(torch_x, approximate="tanh")

        def backward():
            return torch.autograd.grad(torch_y, leaf, torch_dy, retain_graph=True)

    yield _row(f"gelu forward {_numbers(shape)}", _size(bytes=2 * x.nbytes), {
        "ours": lambda: ops.gelu_forward(x, out=y), "allocating": lambda: ops.gelu_forward(x), "torch": forward,
    }, seconds, "F.gelu tanh")
    yield _row(f"gelu backward {_numbers(shape)}", _size(bytes=3 * x.nbytes), {
        "ours": lambda: ops.gelu_backward(dy, x, grads=dx), "allocating": lambda: ops.gelu_backward(dy, x),
        "torch": backward,
    }, seconds, "F.gelu tanh")


def _cross_entropy(ops, torch, rng, shape, seconds):
    logits, targets = normal(rng, *shape), rng.integers(0, shape[1], shape[0])
    out, dlogits = (aligned_empty(shape[:1]), aligned_empty(shape[:1])), aligned_empty(shape)
    both = None
    if torch:
        leaf, torch_targets = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(targets)

        def both():
            return torch.autograd.grad(torch.nn.functional.cross_entropy(leaf, torch_targets), leaf)

    def ours():
        ops.cross_entropy_forward(logits, targets, out=out)
        ops.cross_entropy_backward(1 / shape[0], logits, targets, out[1], grads=dlogits)

    def allocating():
        _, lse = ops.cross_entropy_forward(logits, targets)
        ops.cross_entropy_backward(1 / shape[0], logits, targets, lse)

    return _row(f"cross-entropy forward + backward {_numbers(shape)}", _size(bytes=3 * logits.nbytes),
                {"ours": ours, "allocating": allocating, "torch": both}, seconds, "F.cross_entropy")


def _adamw(ops, torch, rng, config, seconds):
    """One step over all parameters of a model; the two have their own moments, and share parameters and gradients."""
    shapes = config.parameter_shapes().values()
    params, grads = [normal(rng, *s, std=0.02) for s in shapes], [normal(rng, *s, std=1e-3) for s in shapes]
    moments = [(np.zeros_like(p), np.zeros_like(p)) for p in params]
    settings = dict(lr=1e-5, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)

    def ours():
        for p, g, (m, v) in zip(params, grads, moments, strict=True):
            ops.adamw(p, g, m, v, 1, **settings)

    step = None
    if torch:
        tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.from_numpy(grad)
        step = torch.optim.AdamW(tensors, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True).step
    count = sum(map(math.prod, shapes))
    return _row(f"AdamW, {count / 1e6:.1f} M parameters", _size(bytes=7 * 4 * count),
                {"ours": ours, "torch": step}, seconds, "fused AdamW")


# ---------------------------------------------------------------------------------------------------------------
# the ladders: (ops, rng, shape) -> what the work is called, its size, and a function of the rung's name


def _attention_forward_ladder(ops, rng, shape):
    q, k, v = (normal(rng, *shape) for _ in range(3))
    out = aligned_empty(shape), aligned_empty(shape[:3])
    return (f"attention forward, causal {_numbers(shape)}", _size(flops=_attention_flops(shape)),
            lambda kernel: ops.attention_forward(q, k, v, kernel=kernel, out=out))


def _attention_backward_ladder(ops, rng, shape):
    q, k, v, dout = (normal(rng, *shape) for _ in range(4))
    out, lse = ops.attention_forward(q, k, v)
    grads = aligned_empty(shape), aligned_empty(shape), aligned_empty(shape)
    return (f"attention backward, causal {_numbers(shape)}", _size(flops=2.5 * _attention_flops(shape)),
            lambda kernel: ops.attention_backward(dout, q, k, v, out, lse, kernel=kernel, grads=grads))


def _linear_forward_ladder(ops, rng, shape):
    rows, K, N = shape
    x, weight, bias, y = normal(rng, rows, K), normal(rng, N, K, std=0.02), normal(rng, N), aligned_empty((rows, N))
    return (f"linear forward {rows} x {K} x {N}", _size(flops=2 * rows * K * N),
            lambda kernel: ops.linear_forward(x, weight, bias, kernel=kernel, out=y))


def _linear_backward_ladder(ops, rng, shape):
    rows, K, N = shape
    x, weight, dy = normal(rng, rows, K), normal(rng, N, K, std=0.02), normal(rng, rows, N)
    grads = aligned_empty((rows, K)), aligned_empty((N, K)), aligned_empty((N,))
    return (f"linear backward {rows} x {K} x {N}", _size(flops=4 * rows * K * N),
            lambda kernel: ops.linear_backward(dy, x, weight, kernel=kernel, grads=grads))


def _layernorm_forward_ladder(ops, rng, shape):
    x, weight, bias = normal(rng, *shape), normal(rng, shape[1]), normal(rng, shape[1])
    out = aligned_empty(shape), aligned_empty(shape[:1]), aligned_empty(shape[:1])
    return (f"layernorm forward {_numbers(shape)}", _size(bytes=2 * x.nbytes),
            lambda kernel: ops.layernorm_forward(x, weight, bias, kernel=kernel, out=out))


def _layernorm_backward_ladder(ops, rng, shape):
    x, dy, weight = normal(rng, *shape), normal(rng, *shape), normal(rng, shape[1])
    _, mean, rstd = ops.layernorm_forward(x, weight)
    grads = aligned_empty(shape), aligned_empty(shape[1:]), aligned_empty(shape[1:])
    return (f"layernorm backward {_numbers(shape)}", _size(bytes=3 * x.nbytes),
            lambda kernel: ops.layernorm_backward(dy, x, weight, mean, rstd, kernel=kernel, grads=grads))


LADDERS = {
    "layernorm_forward": _layernorm_forward_ladder,
    "layernorm_backward": _layernorm_backward_ladder,
    "linear_forward": _linear_forward_ladder,
    "linear_backward": _linear_backward_ladder,
    "attention_forward": _attention_forward_ladder,
    "attention_backward": _attention_backward_ladder,
}
# tiny, and in earnest: small enough for the slowest rung, large enough for the fastest
LADDER_SHAPES = {
    "layernorm_forward": ((8, 24), (8192, 1600)),
    "layernorm_backward": ((8, 24), (8192, 1600)),
    "linear_forward": ((8, 24, 40), (1024, 768, 768)),
    "linear_backward": ((8, 24, 40), (1024, 768, 768)),
    "attention_forward": ((1, 2, 33, 16), (4, 12, 1024, 64)),
    "attention_backward": ((1, 2, 33, 16), (4, 12, 512, 64)),
}


def _numbers(shape):
    return f"({', '.join(map(str, shape))})"
