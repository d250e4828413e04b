"""Mixed precision: matrix products and attention in 16 bits, by torch.autocast; weights, their gradients and the
optimiser in float32. bfloat16 has the range of float32 and needs nothing else. float16 ends at 65504 below and 6e-8
above 0, where gradients get lost; so the loss, and with it every gradient, is multiplied by a large power of two first
(Micikevicius et al. 2017, arXiv:1710.03740), the largest at which nothing overflows, found by trial."""

import contextlib
import math

import torch

from ..files.json_file import read_json, write_json

FILE = "loss_scale.json"
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision(args):
    """The name in DTYPES of what the arguments ask for."""
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"


def autocast(name, device):
    """The context to compute losses in."""
    dtype = DTYPES[name]
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


class LossScale:
    """What the loss is multiplied by: halved when the gradients overflow, doubled after GROWTH steps without."""

    START, LEAST, MOST, GROWTH = 2.0**16, 2.0**-10, 2.0**40, 2000

    def __init__(self):
        self.value, self.good_steps, self.skipped = self.START, 0, 0

    def overflowed(self):
        """The gradients were not finite: they are thrown away, and computed again at half the scale.
        FloatingPointError where that cannot help any more."""
        if self.value <= self.LEAST:
            raise FloatingPointError(f"fp16: the gradients overflow at every loss scale from {self.START:g} down to "
                                     f"{self.LEAST:g}")
        self.value, self.good_steps, self.skipped = self.value / 2, 0, self.skipped + 1

    def advance(self):
        """A step has been made."""
        self.good_steps += 1
        if self.good_steps == self.GROWTH:
            self.value, self.good_steps = min(self.value * 2, self.MOST), 0

    def save(self, folder):
        write_json(folder / FILE, vars(self))

    def load(self, folder):
        """ValueError if the file is not what save() wrote."""
        saved = read_json(folder / FILE)
        if saved.keys() != vars(self).keys() or not (
                type(saved["value"]) is float and self.LEAST <= saved["value"] <= self.MOST
                and math.frexp(saved["value"])[0] == 0.5
                and all(type(saved[name]) is int and saved[name] >= 0 for name in ("good_steps", "skipped"))
                and saved["good_steps"] < self.GROWTH):
            raise ValueError(f"{folder / FILE}: must be an object of {', '.join(vars(self))}: a power of two from "
                             f"{self.LEAST:g} to {self.MOST:g}, an integer below {self.GROWTH}, and one of 0 or more")
        vars(self).update(saved)
