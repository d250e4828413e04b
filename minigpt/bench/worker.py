"""One section of the benchmark under one setting, in a process of its own: malloc reads its settings at start, and
torch keeps its own for good. Started by minigpt.bench; writes one JSON object a line: what it measured, row by row.

    python -m minigpt.bench.worker '{"section": "ops", "setting": "default", "threads": 2, ...}'
"""

import json
import sys

from ..ops import cpp_ops
from . import decode, machine, ops, shakespeare, train


def main():
    options = json.loads(sys.argv[1])
    cpp_ops.set_num_threads(options["threads"])
    torch = None
    if options["torch"]:
        import torch

        torch.set_num_threads(options["threads"])
        if options["setting"] == "best":
            torch.set_float32_matmul_precision("medium")
    if options["setting"] == "default":
        _write({"machine": machine.describe(), "limits": machine.limits(options)})
    section = {"ops": ops, "train": train, "decode": decode, "shakespeare": shakespeare}[options["section"]]
    for row in section.rows(cpp_ops, torch, options):
        _write(row)
    if options["section"] == "ops" and options["setting"] == "default":
        for row in ops.ladder_rows(cpp_ops, options):
            _write(row)


def _write(row):
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
