"""The emulator's counts, on accesses whose sectors and bank conflicts one can work out by hand."""

from pathlib import Path

import numpy as np
import pytest

from minigpt import emulator
from minigpt.emulator.flops import COUNTED
from minigpt.ops import available

pytestmark = pytest.mark.skipif(available()["emulated"] is not None, reason=str(available()["emulated"]))

# Each with what a warp reads: an index into x (global) or into shared memory of 2048 words, and what it costs.
GLOBAL = {                                         # (float or float4 at x[..], sectors, ideal)
    "side by side": ("x[t]", 4, 4),
    "every other": ("x[2 * t]", 8, 4),
    "a row each": ("x[32 * t]", 32, 4),
    "all the same": ("x[7]", 1, 1),
    "one too far": ("x[t + 1]", 5, 4),
    "backwards": ("x[31 - t]", 4, 4),
    "four at once": ("sum(((const float4*)x)[t])", 16, 16),
    "two at once, apart": ("sum(((const float2*)x)[2 * t])", 16, 8),
    "half of the lanes": ("t < 16 ? x[t] : 0", 2, 2),
}
SHARED = {                                         # (what is read, turns lost to conflicts)
    "side by side": ("s[t]", 0),
    "every other": ("s[2 * t]", 1),
    "a column": ("s[32 * t]", 31),
    "a column of padded rows": ("s[33 * t]", 0),
    "a column, swizzled": ("s[32 * t + (t ^ 5)]", 0),
    "all the same": ("s[9]", 0),
    "two rows": ("s[t / 16 * 32 + t % 16]", 1),
    "two at once": ("sum(((float2*)s)[t])", 0),
    "two at once, every other": ("sum(((float2*)s)[2 * t])", 2),
    "four at once": ("sum(((float4*)s)[t])", 0),
    "four at once, every other": ("sum(((float4*)s)[2 * t])", 4),
    "16 bits": ("((short*)s)[t]", 0),
}
MATRICES = {"rows of 256 bytes": (128, 28), "rows of 16 bytes": (8, 0), "padded rows": (136, 0)}


def source():
    lines, launchers = ['#include "ptx.cuh"', "float sum(float2 v) { return v.x + v.y; }",
                        "float sum(float4 v) { return v.x + v.w; }"], []

    def add(name, body, grid="1, 32"):
        lines.append(f"__global__ void {name}_kernel(float* y, const float* x, int n) {{ {body} }}")
        launchers.append(f'extern "C" void {name}(float* y, const float* x, int n, cudaStream_t stream) '
                         f"{{ {name}_kernel<<<{grid}, 0, stream>>>(y, x, n); }}")

    fill = ("__shared__ __align__(16) float s[2048];\nint t = threadIdx.x;\n"
            "for (int i = t; i < 2048; i += 32) s[i] = 0;\n")
    for i, (access, *_) in enumerate(GLOBAL.values()):
        add(f"global{i}", f"int t = threadIdx.x;\nfloat v =\n{access};\ny[t] = v;")
    for i, (access, _) in enumerate(SHARED.values()):
        add(f"shared{i}", f"{fill}__syncthreads();\nfloat v =\n{access};\ny[t] = v;")
    for i, (row, _) in enumerate(MATRICES.values()):
        add(f"matrix{i}", f"{fill}__syncthreads();\nuint32_t r[4];\n"
                          f"ldmatrix_x4(r, (uint16_t*)s + t % 8 * {row} + t / 8 * 8);\ny[t] = r[0] + r[3];")
    loop = "int t = threadIdx.x;\nfloat v = 0;\nfor (int i = 0; i < {}; i++)\nv += x[{}];\ny[t] = v;"
    add("uneven", loop.format("t + 1", "i"))
    add("long_loop", loop.format("n", "i % 8 * 32 + t"))
    add("atomics", "atomicAdd(y + threadIdx.x % 8, x[threadIdx.x]);")
    add("barriers", "for (int i = 0; i < 5; i++) __syncthreads();", "3, 64")
    add("products", "float c[4] = {};\nuint32_t a[4] = {}, b[2] = {};\nmma_m16n8k16<half>(c, a, b);", "2, 96")
    return "\n".join(lines + launchers) + "\n"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "counts.cu"
    path.write_text(source())
    return emulator.compile(path, include=[Path(__file__).parent.parent / "csrc" / "cuda"])


def run(kernels, name, n=0, **options):
    report = emulator.run(getattr(kernels, name), np.zeros(64, np.float32), np.zeros(2048, np.float32), n, **options)
    assert not report.findings, report
    return report


def the_line(report, space, kind="read"):
    line, = (line for line in report.lines if (line.space, line.kind) == (space, kind))
    return line


@pytest.mark.parametrize("warps", ["forward", "reversed", "shuffled"])
@pytest.mark.parametrize("i, name", [*enumerate(GLOBAL)])
def test_sectors_of_global_memory(kernels, i, name, warps):
    _, sectors, ideal = GLOBAL[name]
    line = the_line(run(kernels, f"global{i}", warps=warps), "global")
    assert (line.requests, line.sectors, line.ideal) == (1, sectors, ideal)


@pytest.mark.parametrize("i, name", [*enumerate(SHARED)])
def test_conflicts_at_the_banks(kernels, i, name):
    line = the_line(run(kernels, f"shared{i}"), "shared")
    assert (line.requests, line.conflicts) == (1, SHARED[name][1])


@pytest.mark.parametrize("i, name", [*enumerate(MATRICES)])
def test_conflicts_of_ldmatrix(kernels, i, name):
    line = the_line(run(kernels, f"matrix{i}"), "shared")
    assert (line.requests, line.bytes, line.conflicts) == (1, 32 * 16, MATRICES[name][1])


def test_lanes_that_go_different_ways(kernels):
    line = the_line(run(kernels, "uneven"), "global")
    assert (line.requests, line.bytes, line.sectors) == (32, 4 * 32 * 33 // 2, 32)    # the i-th time of all is one


def test_long_loops(kernels):
    line = the_line(run(kernels, "long_loop", 5000), "global")
    assert (line.requests, line.bytes, line.sectors) == (5000, 5000 * 128, 5000 * 4)


def test_atomics_barriers_and_products(kernels):
    line = the_line(run(kernels, "atomics"), "global", "atomic")
    assert (line.requests, line.sectors, line.bytes) == (1, 1, 128)
    assert run(kernels, "barriers").kernels[0].barriers == 3 * 5
    assert run(kernels, "products").kernels[0].tensor_flops == 2 * 3 * 2 * 16 * 8 * 16


def test_the_trace(kernels):
    first, *rest = run(kernels, "global2", trace=10).trace
    assert (first["array"], first["kind"], first["bytes"], first["warp"], first["step"]) == ("x", "read", 4, 0, 0)
    assert first["lanes"] == list(range(32)) and first["offsets"] == [128 * t for t in range(32)]
    assert [(t["array"], t["kind"]) for t in rest] == [("y", "write")]
    assert len(run(kernels, "shared0", trace=10).trace) == 10


# ---------------------------------------------------------------------------------------------------------------
# FLOPs

N = 100
FLOPS = {                                          # what a thread does with i < N, its own number; and FLOPs of all
    "saxpy": ("y[i] = 3 * x[i] + y[i];", 2 * N),
    "fused": ("y[i] = fmaf(3, x[i], y[i]);", 2 * N),
    "subtract and divide": ("y[i] = (x[i] - 1) / (y[i] + 2);", 3 * N),
    "addresses": ("y[(3 * i + 5) % 7 + i / 7 * 7] = x[i];", 0),
    "conversions": ("y[i] = (float)(int)x[i] + (float)i;", N),
    "comparisons": ("y[i] = x[i] > 0 ? fmaxf(x[i], y[i]) : -fabsf(x[i]);", 0),
    "functions": ("y[i] = expf(x[i]) + sqrtf(x[i]);", N),
    "doubles": ("y[i] = (double)x[i] * x[i];", N),
    "a sum each": ("float s = 0; for (int k = 0; k < i; k++) s += x[k]; y[i] = s;", N * (N - 1) // 2),
    "every other": ("if (i % 2) y[i] += x[i];", N // 2),
    "one of two": ("float v = x[i]; if (i % 4 == 0) v = v * 3 + 1; else v = v / 3; y[i] = v;", N // 4 * 2 + 3 * N // 4),
    "ahead of its if": ("float v = x[i], w = y[i]; for (int k = 0; k < 4; k++) if (k < i) v += w * x[k]; y[i] = v;",
                        2 * (4 * N - 10)),
    "vectors": ("if (i < N / 4) { float4 a = ((float4*)x)[i], b = ((float4*)y)[i];\n"
                "((float4*)y)[i] = make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w + b.w); }", N),
    "atomics": ("atomicAdd(y, x[i]);", N),
    "shuffles": ("float v = x[i]; v += __shfl_xor_sync(__activemask(), v, 1); y[i] = v;", N),
}


@pytest.fixture(scope="module")
def flops(tmp_path_factory):
    path = tmp_path_factory.mktemp("flops") / "flops.cu"
    path.write_text("".join(f"""__global__ void kernel{i}(float* y, const float* x) {{
  const int N = {N}, i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < N) {{ {body} }}
}}
extern "C" void run{i}(float* y, const float* x) {{ kernel{i}<<<2, 64>>>(y, x); }}
""" for i, (body, _) in enumerate(FLOPS.values())))
    return emulator.compile(path)


@pytest.mark.skipif(not COUNTED, reason="the assembly of this machine is not known to minigpt/emulator/flops.py")
@pytest.mark.parametrize("i, name", [*enumerate(FLOPS)])
def test_flops(flops, i, name):
    report = emulator.run(getattr(flops, f"run{i}"), np.ones(N, np.float32), np.ones(N, np.float32))
    assert report.kernels[0].flops == FLOPS[name][1], FLOPS[name][0]
