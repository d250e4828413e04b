"""Two kernels with something wrong, and what the emulator says about them:

    python -m minigpt.emulator.demo
"""

from pathlib import Path

import numpy as np

from .. import compile, watch

FOLDER = Path(__file__).parent


def missing_barrier(**options):
    """The report of sum_rows.cu, in which a __syncthreads() is missing; options as in watch()."""
    x = np.arange(4 * 300, dtype=np.float32).reshape(4, 300)
    sums = np.empty(4, np.float32)
    kernels = compile(FOLDER / "sum_rows.cu")
    with watch(**options) as report:
        kernels.row_sums(x, sums, *x.shape)
    return report


def uncoalesced(**options):
    """The report of transpose.cu, whose writes are scattered."""
    x = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    y = np.empty_like(x)
    kernels = compile(FOLDER / "transpose.cu")
    with watch(**options) as report:
        kernels.transposed(x, y, len(x))
    return report


def main():
    for title, story in (("A sum of rows, with a barrier missing", missing_barrier),
                         ("A transpose that is right, and slow", uncoalesced)):
        print(f"{title}\n{'=' * len(title)}\n\n{story()}\n\n")
