"""Ranks: the processes of one run, numbered from 0. torchrun starts them, and tells each what it is by environment
variables; without it there is one, Alone. What several say to each other is in scale/parallel.py, which needs torch.

A layout says what they divide: the data (ddp), the data and the weights (fsdp), the heads and the MLP's columns (tp),
the experts (ep). tp=2,dp=3 is six ranks: three groups that each see a part of the data, and in each two halves of a
model.
"""

import os
import re
from typing import NamedTuple

KINDS = "ddp, fsdp, tp=N, tp=N,dp=M, ep=N or ep=N,dp=M"


class Layout(NamedTuple):
    kind: str  # "ddp", "fsdp", "tp" or "ep"
    inner: int  # ranks that hold one model together, with tp and ep; else 1
    dp: int | None  # copies of those; None: as many as there are ranks

    @classmethod
    def parse(cls, text):
        """ValueError for a text that is none of KINDS."""
        if text in ("ddp", "fsdp"):
            return cls(text, 1, None)
        match = re.fullmatch(r"(tp|ep)=(\d+)(?:,dp=(\d+))?", text) if isinstance(text, str) else None
        if not match or int(match[2]) < 1 or int(match[3] or 1) < 1:
            raise ValueError(f"TrainingArguments: parallel is {text!r}, must be {KINDS}")
        return cls(match[1], int(match[2]), int(match[3] or 1))


class Alone:
    """The ranks of a run that has one. Those of scale.parallel.Ranks have the same attributes."""

    rank = 0
    data_rank, data_ranks = 0, 1  # which share of the data is read here, of how many

    def sum(self, *numbers):
        """The sums of these numbers over all shares of the data."""
        return numbers

    def any(self, flag):
        """True if the flag is, on any rank."""
        return flag

    def wait(self):
        """Returns when all ranks are here."""

    def agree(self, run):
        """ValueError if `run`, a dict that JSON can hold, is another one on another rank."""

    def close(self):
        """Says goodbye to the others; nothing can be computed together after this."""


def number_of_ranks():
    """As torchrun says it; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ else 1


def is_first():
    """Whether this process is the one that talks."""
    return number_of_ranks() == 1 or os.environ["RANK"] == "0"


def is_first_to_fail():
    """Whether this process is to say what went wrong: of several ranks the one that comes first, since the others fail
    for no other reason, or only because it is gone."""
    if number_of_ranks() == 1:
        return True
    try:
        from .scale.parallel import store
        return store().add("failed", 1) == 1
    except (ImportError, RuntimeError, KeyError):
        return is_first()


def is_loss_of_a_rank(error):
    """Whether an error of torch's says no more than that another rank no longer answers."""
    signs = "closed by peer", "reset by peer", "Broken pipe", "imed out", "connectFullMesh", "remote process exited"
    return isinstance(error, RuntimeError) and number_of_ranks() > 1 and any(sign in str(error) for sign in signs)


def is_restart():
    """Whether torchrun has started the ranks anew, after one of them was lost."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
