"""The figures in the headers of the CUDA ladders cannot go stale: the emulator counts them again.

`// counted:` says what the memory does, for one head of 256 causal queries, 64 rows of layernorm, a square product of
linear: the sectors of 32 bytes touched in global memory, and in shared memory the accesses by warps, and the turns they
lose where threads want different words of a bank.
"""

import re

import numpy as np
import pytest

from minigpt import emulator, ops

if reason := ops.available()["emulated"]:
    pytest.skip(reason, allow_module_level=True)
if emulator.build._is_clang():
    pytest.skip("the figures are those of g++; clang++ splits accesses of 16 bytes", allow_module_level=True)

OPS = ops.load("emulated")
SIXTEEN_BITS = ("tensor_cores", "swizzled", "pipelined", "fused")


def counted(size, op, *arguments, **kernel):
    """The line that the header must have."""
    with emulator.watch() as report:
        getattr(OPS, op)(*arguments, **kernel)
    assert not report.findings, report
    sectors, accesses, lost = (sum(getattr(line, what) for line in report.lines if line.space == space)
                               for space, what in (("global", "sectors"), ("shared", "requests"),
                                                   ("shared", "conflicts")))
    shared = f"{accesses:,} accesses to shared, {lost:,} turns lost" if accesses else "no shared"
    return f"// counted: {size}: {sectors:,} sectors of global memory, {shared}"


def in_header(folder, file):
    path, = (emulator.build.sources() / "cuda" / folder).glob(file)
    found = re.search(r"^// counted: .*$", path.read_text(), re.MULTILINE)
    return found and found[0]


@pytest.mark.parametrize("kernel", OPS.kernels["attention_forward"])
def test_attention_forward(kernel):
    dtype = np.float16 if kernel in SIXTEEN_BITS else np.float32
    q, k, v = (np.ones((1, 1, 256, 64), dtype) for _ in range(3))
    expected = counted("1 causal head, T 256, D 64", "attention_forward", q, k, v, kernel=kernel)
    assert in_header("attention", f"forward_*_{kernel}.cu") == expected
    row = re.search(rf"^\| `{kernel}`.*$", (emulator.build.sources() / "README.md").read_text(), re.MULTILINE)[0]
    assert re.findall(r"[\d,]+", row.split("|", 2)[2]) == re.findall(r"([\d,]+) [sat]", expected)


@pytest.mark.parametrize("kernel", OPS.kernels["attention_backward"])
def test_attention_backward(kernel):
    x, lse = np.ones((1, 1, 256, 64), np.float16 if kernel in SIXTEEN_BITS else np.float32), np.zeros((1, 1, 256))
    expected = counted("1 causal head, T 256, D 64", "attention_backward", x, x, x, x, x, lse.astype(np.float32),
                       kernel=kernel)
    assert in_header("attention", f"backward_*_{kernel}.cu") == expected


@pytest.mark.parametrize("way, kernel", [(way, kernel) for way in ("forward", "backward")
                                         for kernel in OPS.kernels[f"layernorm_{way}"]])
def test_layernorm(way, kernel):
    x, weight, row = np.ones((64, 768), np.float32), np.ones(768, np.float32), np.ones(64, np.float32)
    arguments = (x, weight, weight) if way == "forward" else (x, x, weight, row, row)
    expected = counted("64 rows, C 768, float32", f"layernorm_{way}", *arguments, kernel=kernel)
    assert in_header("layernorm", f"{way}_*_{kernel}.cu") == expected


@pytest.mark.skipif(not emulator.flops.COUNTED, reason="FLOPs are not counted on this machine")
@pytest.mark.parametrize("way, kernel", [(way, kernel) for way in ("forward", "backward")
                                         for kernel in OPS.kernels[f"layernorm_{way}"]])
def test_flops_of_layernorm(way, kernel):
    x, weight, row = np.ones((64, 768), np.float32), np.ones(768, np.float32), np.ones(64, np.float32)
    with emulator.watch() as report:
        getattr(OPS, f"layernorm_{way}")(*((x, weight, weight) if way == "forward" else (x, x, weight, row, row)),
                                         kernel=kernel)
    path, = (emulator.build.sources() / "cuda" / "layernorm").glob(f"{way}_*_{kernel}.cu")
    said = int(re.search(r"(\d+) FLOPs a number", path.read_text())[1])
    assert said == round(sum(launched.flops for launched in report.kernels) / x.size)


@pytest.mark.parametrize("kernel", OPS.kernels["linear_forward"])
def test_linear(kernel):
    x = np.ones((256, 256), np.float16 if kernel == "tensor_cores" else np.float32)
    expected = counted(f"I = J = R = 256, {x.dtype}", "linear_forward", x, x, kernel=kernel)
    assert in_header("linear", f"*_{kernel}.cu") == expected


def numbers(*shape):
    return np.ones(shape, np.float32)


X, ROW, WEIGHT = numbers(64, 768), numbers(64), numbers(768)
HEADS, TABLE, LOGITS, IDS = numbers(1, 1, 64, 64), numbers(64, 32), numbers(16, 50257), np.arange(16)
TOKENS, VECTORS = np.arange(64)[None], numbers(64, 768)
ONE_LINE = {
    "gelu": ("64 x 768 numbers", (X,), (X, X)),
    "swiglu": ("64 x 768 numbers", (X, X), (X, X, X)),
    "rope": ("1 head, T 64, D 64", (HEADS, TABLE, TABLE), (HEADS, TABLE, TABLE)),
    "rmsnorm": ("64 rows, C 768", (X, WEIGHT), (X, X, WEIGHT, ROW)),
    "residual_layernorm": ("64 rows, C 768", (X, X, WEIGHT, WEIGHT), (X, X, X, WEIGHT, ROW, ROW)),
    "cross_entropy": ("16 rows, V 50257", (LOGITS, IDS), (1.0, LOGITS, IDS, numbers(16))),
    "embedding": ("64 tokens, C 768", (TOKENS, VECTORS), (VECTORS[None], TOKENS, VECTORS)),
}


@pytest.mark.parametrize("op", ONE_LINE)
def test_forward_and_backward(op):
    size, *arguments = ONE_LINE[op]
    lines = re.findall(r"^// counted: .*$", (emulator.build.sources() / "cuda" / op / f"{op}.cu").read_text(),
                       re.MULTILINE)
    assert lines == [counted(f"{way}, {size}, float32", f"{op}_{way}", *given)
                     for way, given in zip(("forward", "backward"), arguments, strict=True)]


def test_adamw():
    arrays = (numbers(64 * 768) for _ in range(4))
    assert in_header("adamw", "adamw.cu") == counted("64 x 768 parameters, float32", "adamw", *arrays, 1, 0.1)


@pytest.mark.parametrize("rows", [64, 256])
def test_the_look_for_tokens_is_quadratic(rows):
    """As the header of embedding says: 8 bytes for each pair of rows, once for 256 columns. (Sectors have 32.)"""
    source = (emulator.build.sources() / "cuda" / "embedding" / "embedding.cu").read_text().splitlines()
    with emulator.watch() as report:
        OPS.embedding_backward(numbers(1, rows, 512), np.arange(rows)[None], numbers(rows, 512))
    looked = [line for line in report.lines if "tokens[mine]" in source[int(line.place.rpartition(":")[2]) - 1]]
    assert [line.sectors for line in looked] == [512 // 256 * rows * rows * 8 // 32]
