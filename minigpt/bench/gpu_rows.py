"""What `minigpt bench gpu` times: a row is one piece of work, ours rung by rung beside torch, and what it must reach.

Arrays are torch tensors. Work is counted by its useful part: a causal attention has half the products of a full one,
and bytes are those of reading each input and writing each output once. A row keeps as many sets of arrays as it takes
to be twice the size of the GPU's L2 cache, and calls go round them, so that nothing is found in the cache.

Before it is timed, everything is held against the specification in float64: `sample` is a part of the arguments small
enough for NumPy, and its results are compared with the same part of each variant's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import cycle

from ..ops import numpy_ops
from . import gpu_rows_small as small

PEERS = ("FA2", "cuDNN", "MATH", "torch")  # the first three are backends of its attention


@dataclass
class Row:
    work: str
    op: str
    dtype: str
    ours: dict[str, Callable]              # by rung: makes a function whose calls return the results to compare
    peers: dict[str, Callable]             # the same by backend of torch, one of PEERS
    oracle: Callable                       # () -> the same results in float64, of the sample only
    sample: Callable                       # results -> the part of them that the oracle computes
    amount: dict                           # {"flops": n} or {"bytes": n}
    must: dict = field(default_factory=dict)   # {"FA2": 0.7}: the speed to reach, as a multiple of that peer's; "copy":
    aim: dict = field(default_factory=dict)    # of the GB/s of a copy; "TFLOP/s": as a number
    targets_of: str | None = None          # the rung of which this is asked, if not of all


@dataclass
class Maker:
    """Makes rows: for a backend, with torch's arrays on `device`, whose L2 cache has `l2` bytes."""
    ops: object
    torch: object
    device: str
    l2: int

    def normal(self, dtype, *shape):
        return self.torch.randn(shape, device=self.device).to(getattr(self.torch, dtype))

    def sets(self, make):
        """Sets of arrays, as many as it takes to outgrow the cache twice."""
        first = make()
        size = sum(x.numel() * x.element_size() for x in first)
        return [first] + [make() for _ in range(math.ceil(2 * self.l2 / size) - 1)]

    def ids(self, limit, *shape):
        return self.torch.randint(limit, shape, device=self.device)

    def exact(self, x):
        """As the oracle takes it."""
        return as_float64(x)

    def integers(self, x):
        return x.cpu().numpy()

    def bytes(self, dtype, numbers):
        return {"bytes": numbers * getattr(self.torch, dtype).itemsize}

    def rungs(self, op, dtype, D=1):
        """What to call the rungs that take such arrays, and the kernel= that chooses each."""
        return {rung.name or op: rung.name for rung in self.ops._rungs[op] if rung.takes(dtype, D)}

    def ladder(self, op, dtype, call, sets, D=1):
        """What Row.ours takes: each rung with call(*set, rung=its name)."""
        return {name: partial(round_robin, partial(call, rung=rung), sets)
                for name, rung in self.rungs(op, dtype, D).items()}

    def row(self, op, dtype, what, make, call, peer, oracle, amount, sample=lambda results: [x[:32] for x in results],
            in_place=False, prepared=False):
        """A row of one op. make() gives a set of arrays, on which call(*set, rung=name) is ours, peer(*set) torch's (or
        None), and oracle(*set) the exact results, of the part that `sample` cuts out of the others'. `in_place`: every
        variant has arrays of its own. `prepared`: peer(sets) gives torch's function and what it is called on."""
        sets = self.sets(make)

        def own():
            return [tuple(x.clone() for x in arrays) for arrays in sets] if in_place else sets

        def ours(rung):
            return round_robin(partial(call, rung=rung), own())

        def theirs():
            return round_robin(*peer(own())) if prepared else round_robin(peer, own())

        return Row(f"{op.replace('_', ' ')} {what}", op, dtype,
                   {name: partial(ours, rung) for name, rung in self.rungs(op, dtype).items()},
                   {"torch": theirs} if peer else {}, lambda: oracle(*sets[0]), sample, amount)

    # -----------------------------------------------------------------------------------------------------------
    # attention

    def attention(self, direction, dtype, shape, causal, peers, only=None, **targets):
        """shape is (B, H, T, D); peers are names of torch's backends; only, the rungs to time if not all."""
        (B, H, T, D), op, backward = shape, f"attention_{direction}", direction == "backward"
        saves = "tiled" if dtype == "float32" else "pipelined"         # the rung that prepares the backward pass

        def make():
            q, k, v = (self.normal(dtype, *shape) for _ in range(3))
            if not backward:
                return q, k, v, self.torch.empty_like(q), self.normal("float32", B, H, T)
            out, lse = self.ops.attention_forward(q, k, v, causal, kernel=saves)
            return q, k, v, out, lse, self.normal(dtype, *shape), *(self.torch.empty_like(x) for x in (q, k, v))

        def forward(q, k, v, out, lse, rung):
            return self.ops.attention_forward(q, k, v, causal, kernel=rung, out=(out, lse))[:1]

        def gradients(q, k, v, out, lse, dout, dq, dk, dv, rung):
            return self.ops.attention_backward(dout, q, k, v, out, lse, causal, kernel=rung, grads=(dq, dk, dv))

        def oracle():
            q, k, v, _, _, *dout = (as_float64(x[:1, :1]) for x in sets[0])
            out, lse = numpy_ops.attention_forward(q, k, v, causal)
            return numpy_ops.attention_backward(dout[0], q, k, v, out, lse, causal) if backward else (out,)

        sets, call = self.sets(make), gradients if backward else forward
        return Row(
            f"attention {direction}{', causal' if causal else ''} {shape}", op, dtype,
            {name: prepare for name, prepare in self.ladder(op, dtype, call, sets, D).items()
             if only is None or name in only},
            {name: partial(sdpa_backward if backward else sdpa, self.torch, name, sets, causal) for name in peers},
            oracle, lambda results: [x[:1, :1] for x in results],
            {"flops": (5 if backward else 2) * 2 * B * H * T * T * D // (2 if causal else 1)}, **targets)

    # -----------------------------------------------------------------------------------------------------------
    # layernorm

    def _norm(self, op, dtype, rows, C, arrays, call, torch_call, oracle, streams, targets):
        """arrays: how many (rows, C) arrays the call is given first; then come weight and bias."""
        def make():
            return (*(self.normal(dtype, rows, C) for _ in range(arrays)), self.normal(dtype, C), self.normal(dtype, C))

        sets = self.sets(make)
        return Row(
            f"{op.replace('_', ' ')} ({rows}, {C})", op, dtype,
            self.ladder(op, dtype, call, sets),
            {"torch": partial(round_robin, torch_call, sets)},
            lambda: oracle(*(as_float64(x[:32] if x.ndim == 2 else x) for x in sets[0])),
            lambda results: [x[:32] for x in results],
            {"bytes": streams * rows * C * sets[0][0].element_size()}, **targets)

    def layernorm_forward(self, dtype, rows, C, **targets):
        out = self.normal(dtype, rows, C), self.normal("float32", rows), self.normal("float32", rows)
        return self._norm(
            "layernorm_forward", dtype, rows, C, 1,
            lambda x, w, b, rung: self.ops.layernorm_forward(x, w, b, kernel=rung, out=out)[:1],
            lambda x, w, b: [self.torch.nn.functional.layer_norm(x, (C,), w, b)],
            lambda x, w, b: numpy_ops.layernorm_forward(x, w, b)[:1], 2, targets)

    def residual_layernorm_forward(self, dtype, rows, C, **targets):
        out = (*(self.normal(dtype, rows, C) for _ in range(2)), *(self.normal("float32", rows) for _ in range(2)))

        def add_and_norm(x, residual, w, b):
            h = x + residual
            return [h, self.torch.nn.functional.layer_norm(h, (C,), w, b)]

        return self._norm(
            "residual_layernorm_forward", dtype, rows, C, 2,
            lambda x, r, w, b, rung: self.ops.residual_layernorm_forward(x, r, w, b, out=out)[:2],
            add_and_norm, lambda x, r, w, b: numpy_ops.residual_layernorm_forward(x, r, w, b)[:2], 4, targets)

    def layernorm_backward(self, dtype, rows, C, **targets):
        """Only dx is compared with the oracle: dweight and dbias are sums over all rows."""
        grads = self.normal(dtype, rows, C), self.normal(dtype, C), self.normal(dtype, C)
        saved = cache(lambda x, w, b: self.ops.layernorm_forward(x, w, b)[1:])
        saved_by_torch = cache(lambda x, w, b: self.torch.native_layer_norm(x, (C,), w, b, 1e-5)[1:])

        def torch_call(dy, x, w, b):
            return self.torch.ops.aten.native_layer_norm_backward(dy, x, (C,), *saved_by_torch(x, w, b), w, b,
                                                                  (True, True, True))[:1]

        def oracle(dy, x, w, b):
            return numpy_ops.layernorm_backward(dy, x, w, *numpy_ops.layernorm_forward(x, w, b)[1:])[:1]

        def call(dy, x, w, b, rung):
            return self.ops.layernorm_backward(dy, x, w, *saved(x, w, b), kernel=rung, grads=grads)[:1]

        return self._norm("layernorm_backward", dtype, rows, C, 2, call, torch_call, oracle, 3, targets)

    # -----------------------------------------------------------------------------------------------------------
    # linear: only to read; the default goes to torch

    def linear(self, dtype, rows, K, N):
        def make():
            return self.normal(dtype, rows, K), self.normal(dtype, N, K), self.normal(dtype, N)

        def call(x, w, b, rung):
            return [self.ops.linear_forward(x, w, b, kernel=rung, out=out)]

        sets, out = self.sets(make), self.normal(dtype, rows, N)
        return Row(
            f"linear forward ({rows}, {K}) x ({N}, {K})", "linear_forward", dtype,
            self.ladder("linear_forward", dtype, call, sets),
            {"torch": partial(round_robin, lambda *xwb: [self.torch.nn.functional.linear(*xwb)], sets)},
            lambda: [numpy_ops.linear_forward(as_float64(sets[0][0][:32]), *(as_float64(x) for x in sets[0][1:]))],
            lambda results: [x[:32] for x in results], {"flops": 2 * rows * K * N})


def round_robin(call, sets):
    """A function without arguments: call(*set), for one set of arrays after the other, from the first on."""
    turn = cycle(sets)
    return lambda: call(*next(turn))


def as_float64(x):
    return x.detach().to("cpu").double().numpy()


def sdpa(torch, name, sets, causal):
    """torch's attention by one named backend; "FA2" is its FLASH_ATTENTION."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = getattr(SDPBackend, {"FA2": "FLASH_ATTENTION", "cuDNN": "CUDNN_ATTENTION"}.get(name, name))

    def forward(q, k, v, *_):
        with sdpa_kernel(backend):
            return [torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)]

    return round_robin(forward, sets)


def sdpa_backward(torch, name, sets, causal):
    leaves = [[x.detach().clone().requires_grad_() for x in arrays[:3]] for arrays in sets]
    forward = sdpa(torch, name, leaves, causal)
    graphs = [(forward()[0], inputs, arrays[5]) for inputs, arrays in zip(leaves, sets, strict=True)]
    return round_robin(lambda out, inputs, dout: torch.autograd.grad(out, inputs, dout, retain_graph=True), graphs)


def rows(maker, tiny):
    """Yields functions that make the rows, one at a time since each has arrays of gigabytes: every rung of the ladders
    at a size that the slow ones can bear, then what the targets name, for the rungs made for 16 bits alone."""
    FP32, BF16 = "float32", "bfloat16"
    attention, norm_rows = maker.attention, 64 if tiny else 131072
    shape = (1, 2, 20, 16) if tiny else (4, 12, 1024, 64)
    yield partial(attention, "forward", FP32, shape, True, ("MATH",), must={"MATH": 1, "TFLOP/s": 12},
                  aim={"TFLOP/s": 20})
    yield partial(attention, "backward", FP32, shape, True, ("MATH",))
    gpt2 = (1, 2, 20, 16) if tiny else (8, 12, 1024, 64)
    yield partial(attention, "forward", BF16, gpt2, True, ("FA2", "cuDNN"), must={"FA2": 0.65}, aim={"FA2": 0.85})
    yield partial(attention, "backward", BF16, gpt2, True, ("FA2", "cuDNN"))
    for direction, must, aim in ("forward", 0.70, 0.95), ("backward", 0.40, 0.65):
        fast = maker.rungs(f"attention_{direction}", BF16).keys() - maker.rungs(f"attention_{direction}", FP32).keys()
        for shape in [(1, 1, 24, 16)] if tiny else [(4, 32, 4096, 64), (4, 16, 4096, 128)]:
            for causal in False, True:
                yield partial(attention, direction, BF16, shape, causal, ("FA2", "cuDNN"), only=fast,
                              must={"FA2": must}, aim={"FA2": aim})
    shape = (1, 1, 24, 16) if tiny else (2, 16, 8192, 128)
    yield partial(attention, "forward", BF16, shape, False, ("FA2", "cuDNN"), only={"pipelined", "hopper"},
                  must={"FA2": 1.15}, aim={"cuDNN": 0.75}, targets_of="hopper")
    for C in (40,) if tiny else (768, 1024, 4096):
        for dtype in FP32, BF16:
            yield partial(maker.layernorm_forward, dtype, norm_rows, C, must={"copy": 0.85, "torch": 1.2},
                          aim={"copy": 0.93})
            yield partial(maker.layernorm_backward, dtype, norm_rows, C, must={"copy": 0.60, "torch": 1.3},
                          aim={"copy": 0.75})
        yield partial(maker.residual_layernorm_forward, BF16, norm_rows, C, must={"copy": 0.82, "torch": 1.8},
                      aim={"copy": 0.92})
        for row in small.rmsnorm_forward, small.rmsnorm_backward, small.residual_layernorm_backward:
            yield partial(row, maker, BF16, norm_rows, C)
    product, wide = ((40, 24, 36), (64, 40)) if tiny else ((4096, 4096, 4096), (32768, 3072))
    heads, words = ((1, 2, 20, 16), (40, 65)) if tiny else ((8, 32, 4096, 64), (8192, 50257))
    table, parameters = ((2, 20, 65, 24), 5000) if tiny else ((64, 1024, 50257, 768), 124_000_000)
    for dtype in FP32, BF16:
        yield partial(maker.linear, dtype, *product)
        yield partial(small.linear_backward, maker, dtype, *product)
        for row in small.gelu_forward, small.gelu_backward, small.swiglu_forward, small.swiglu_backward:
            yield partial(row, maker, dtype, *wide)
        for direction in "forward", "backward":
            yield partial(small.rope, maker, direction, dtype, *heads)
        for row in small.cross_entropy_forward, small.cross_entropy_backward:
            yield partial(row, maker, dtype, *words)
        for row in small.embedding_forward, small.embedding_backward:
            yield partial(row, maker, dtype, *table)
        yield partial(small.adamw, maker, dtype, parameters)
