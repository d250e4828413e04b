"""Where a run is: in memory a TrainerState, in a checkpoint trainer_state.json.

The file is text that anybody may have edited, so every field is checked before it is believed.
"""

import json
import math
import re
import reprlib
from dataclasses import asdict, dataclass, field

from ..files.json_file import read_json

FILE = "trainer_state.json"


@dataclass
class TrainerState:
    global_step: int = 0  # steps of the optimiser done
    max_steps: int = 0
    epoch: float = 0.0
    best_metric: float | None = None  # the lowest eval_loss, and the checkpoint that has it
    best_model_checkpoint: str | None = None
    unlogged_loss: float = 0.0  # sum over the steps since the last log, and their number
    unlogged_steps: int = 0
    log_history: list = field(default_factory=list)


def write_state(folder, state, run):
    """`run` is a dict of all that a resumed run must have in common with this one."""
    (folder / FILE).write_text(json.dumps({**asdict(state), "run": run}, indent=1), encoding="utf-8")


def read_state(folder):
    """state and run, as write_state got them. ValueError names the field that is not as it must be."""
    path, folder = folder / FILE, folder.resolve()
    saved = read_json(path)

    def is_beside(name):
        return type(name) is str and re.fullmatch(r"checkpoint-\d+", name) and (folder.parent / name).is_dir()

    fields = {
        "global_step": (lambda x: type(x) is int and f"checkpoint-{x}" == folder.name, "the number of its folder"),
        "max_steps": (lambda x: type(x) is int and 0 <= x < 2**53, "an integer, 0 or more"),
        "epoch": (lambda x: _is_float(x) and x >= 0, "a float, 0 or more"),
        "best_metric": (lambda x: x is None or _is_float(x), "a float or null"),
        "best_model_checkpoint": (lambda x: x is None or is_beside(x), "the name of a checkpoint beside it or null"),
        "unlogged_loss": (_is_float, "a float"),
        "unlogged_steps": (lambda x: type(x) is int and 0 <= x <= saved["global_step"],
                           "an integer, from 0 to global_step"),
        "log_history": (_is_log, "a list of objects that hold step, epoch and other finite numbers"),
        "run": (lambda x: type(x) is dict, "an object"),
    }
    if saved.keys() != fields.keys():
        raise ValueError(f"{path}: must be an object of {', '.join(fields)}")
    for name, (holds, must_be) in fields.items():
        if not holds(saved[name]):
            raise ValueError(f"{path}: {name} is {reprlib.repr(saved[name])}, must be {must_be}")
    run = saved.pop("run")
    return TrainerState(**saved), run


def _is_float(x):
    return type(x) is float and math.isfinite(x)


def _is_log(x):
    return type(x) is list and all(
        type(entry) is dict and {"step", "epoch"} <= entry.keys()
        and type(entry["step"]) is int and all(map(_is_figure, entry.values())) for entry in x)


def _is_figure(x):
    """A finite number, or a list of them: one for each layer."""
    return type(x) is int and abs(x) < 2**53 or _is_float(x) or type(x) is list and all(map(_is_float, x))
