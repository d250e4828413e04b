"""The figures in the headers of the CUDA kernels of attention cannot go stale: the emulator counts them again.

`// counted:` says what the memory does for one head of 256 causal queries: the sectors of 32 bytes touched in global
memory, and in shared memory the accesses by warps, and the turns they lose where threads want different words of a
bank.
"""

import re

import numpy as np
import pytest

from minigpt import emulator, ops

if reason := ops.available()["emulated"]:
    pytest.skip(reason, allow_module_level=True)

OPS = ops.load("emulated")
SIXTEEN_BITS = ("tensor_cores", "swizzled", "pipelined")


def counted(kernel):
    dtype = np.float16 if kernel in SIXTEEN_BITS else np.float32
    q, k, v = (np.ones((1, 1, 256, 64), dtype) for _ in range(3))
    with emulator.watch() as report:
        OPS.attention_forward(q, k, v, kernel=kernel)
    assert not report.findings, report
    sectors, accesses, lost = (sum(getattr(line, what) for line in report.lines if line.space == space)
                               for space, what in (("global", "sectors"), ("shared", "requests"),
                                                   ("shared", "conflicts")))
    shared = f"{accesses:,} accesses to shared, {lost:,} turns lost" if accesses else "no shared"
    return f"// counted: 1 causal head, T 256, D 64: {sectors:,} sectors of global memory, {shared}"


@pytest.mark.parametrize("kernel", OPS.kernels["attention_forward"])
def test_headers_say_what_is_counted(kernel):
    path, = (emulator.build.sources() / "cuda" / "attention").glob(f"forward_*_{kernel}.cu")
    found = re.search(r"^// counted: .*$", path.read_text(), re.MULTILINE)
    assert found and found[0] == counted(kernel)
