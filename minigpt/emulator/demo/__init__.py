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


STORIES = (
    ("A sum of rows, with a barrier missing", f"{FOLDER / 'sum_rows.cu'}: each thread writes its sum to shared memory\n"
     "and then adds that of another, with no __syncthreads() between the two.", missing_barrier),
    ("A transpose that is right, and slow", f"{FOLDER / 'transpose.cu'}: neighbouring threads read neighbouring\n"
     "numbers, and write numbers that lie a row apart.", uncoalesced))


def main():
    for title, opening, story in STORIES:
        print(f"{title}\n{'=' * len(title)}\n{opening}\n\n{story()}\n\n")
