"""TrainingArguments: what a training run is told, under the names and defaults of transformers (version 5).

Only those that mean something here exist. Every other name is refused, with a word on what to write instead: a typing
error in a learning rate should cost a second, not a night.
"""

import difflib
import math
import operator
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from ..ranks import Layout
from .schedule import SCHEDULES

# Names that people bring along from older versions or larger trainers, and what to do about them here.
ELSEWHERE = {
    "evaluation_strategy": "it is now eval_strategy",
    "per_gpu_train_batch_size": "it is now per_device_train_batch_size",
    "per_gpu_eval_batch_size": "it is now per_device_eval_batch_size",
    "warmup_ratio": "give warmup_steps, which takes a fraction of all steps when it is below 1",
    "tokenizer": "the Trainer takes it, as processing_class",
    "overwrite_output_dir": "choose a new output_dir, or go on with Trainer.train(resume_from_checkpoint=True)",
    "resume_from_checkpoint": "Trainer.train takes it",
    "no_cuda": "leave it out: the model decides where it computes, GPT(config, ops=...)",
    "use_cpu": "leave it out: the model decides where it computes, GPT(config, ops=...)",
    "logging_dir": "leave it out: the log is metrics.jsonl in output_dir",
    "metric_for_best_model": "leave it out: the best model is the one with the lowest eval_loss",
    "dataloader_drop_last": "leave it out: batches run on over the end of an epoch, so every one is full",
}


MOST_BLOCKS = 2**20  # of text in a batch: more is a slip of the keyboard


def unknown_argument(owner, name, known):
    """The TypeError for a keyword argument that does not exist."""
    if name in ELSEWHERE:
        return TypeError(f"{owner}: there is no argument {name}; {ELSEWHERE[name]}")
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
    return TypeError(f"{owner}: there is no argument {name}; {hint}")


@dataclass
class TrainingArguments:
    """ValueError or TypeError for a value that cannot be meant, TypeError for a name that does not exist."""

    output_dir: str = "trainer_output"
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3.0
    max_steps: int = -1  # if positive, it overrides num_train_epochs
    learning_rate: float = 5e-5  # the highest, reached after the warm-up
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: dict | None = None  # {"min_lr": x} for cosine_with_min_lr
    warmup_steps: float = 0  # below 1: a fraction of all steps
    weight_decay: float = 0.0  # of matrices; never of biases and norm weights
    optim: str = "adamw"  # or "muon": the matrices of the layers by Muon, the rest by AdamW (muon.py)
    muon_learning_rate: float = 0.02  # of those matrices; learning_rate is that of the rest
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0  # 0: no clipping
    logging_steps: int = 500
    eval_strategy: str = "no"
    eval_steps: int | None = None  # None: as logging_steps
    save_strategy: str = "steps"  # unless "no", a new lowest eval_loss is saved too
    save_steps: int = 500
    save_total_limit: int | None = None  # the newest so many are kept, and the best
    load_best_model_at_end: bool = False
    bf16: bool = False  # these four are for the torch twin: matrix products and attention in 16 bits, with the ...
    fp16: bool = False  # ... weights in float32; for fp16 the loss is scaled (scale/precision.py)
    gradient_checkpointing: bool = False  # layers are computed again for their gradients, instead of kept
    torch_compile: bool = False
    parallel: str | None = None  # over the ranks that torchrun starts: ddp, fsdp, tp=N,dp=M or ep=N,dp=M (ranks.py)
    seed: int = 42
    report_to: str = "none"  # metrics.jsonl is written in any case
    disable_tqdm: bool | None = None  # None: a bar where somebody is watching

    def __new__(cls, *args, **kwargs):
        known = [field.name for field in fields(cls)]
        for name in kwargs:
            if name not in known:
                raise unknown_argument("TrainingArguments", name, known)
        return super().__new__(cls)

    def __post_init__(self):
        if not isinstance(self.output_dir, (str, Path)):
            self._refuse("output_dir", "the name of a folder", TypeError)
        if not str(self.output_dir) or "\0" in str(self.output_dir):
            self._refuse("output_dir", "the name of a folder")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            self._integer(name, 1, MOST_BLOCKS)
        for name in ("logging_steps", "save_steps"):
            self._integer(name, 1)
        for name in ("eval_steps", "save_total_limit"):
            if getattr(self, name) is not None:
                self._integer(name, 1)
        self._integer("seed", 0)
        self._integer("max_steps", -1)
        if self.max_steps == 0:
            self._refuse("max_steps", "1 or more, or -1 to train for num_train_epochs")
        for name in ("num_train_epochs", "learning_rate", "muon_learning_rate", "adam_epsilon"):
            self._number(name, lambda x: x > 0, "more than 0")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            self._number(name, lambda x: x >= 0, "0 or more")
        for name in ("adam_beta1", "adam_beta2"):
            self._number(name, lambda x: 0 <= x < 1, "in [0, 1)")
        self._one_of("lr_scheduler_type", SCHEDULES)
        self._one_of("optim", ("adamw", "muon"))
        self._one_of("eval_strategy", ("no", "steps", "epoch"))
        self._one_of("save_strategy", ("no", "steps", "epoch", "best"))
        self._one_of("report_to", ("none",))
        for name in ("load_best_model_at_end", "bf16", "fp16", "gradient_checkpointing", "torch_compile"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "True or False", TypeError)
        if not isinstance(self.disable_tqdm, bool | None):
            self._refuse("disable_tqdm", "True, False or None", TypeError)
        if not isinstance(self.lr_scheduler_kwargs, dict | None):
            self._refuse("lr_scheduler_kwargs", "a dict or None", TypeError)
        if self.parallel is not None:
            Layout.parse(self.parallel)
        self._check_combinations()

    def _check_combinations(self):
        kwargs = self.lr_scheduler_kwargs or {}
        wanted = {"min_lr"} if self.lr_scheduler_type == "cosine_with_min_lr" else set()
        if set(kwargs) != wanted:
            self._refuse("lr_scheduler_kwargs", f"{{'min_lr': ...}} with {self.lr_scheduler_type}" if wanted else
                         f"None with {self.lr_scheduler_type}")
        if wanted and not (_is_number(kwargs["min_lr"]) and 0 <= kwargs["min_lr"] <= self.learning_rate):
            self._refuse("lr_scheduler_kwargs", f"a min_lr between 0 and the learning_rate of {self.learning_rate}")
        if self.lr_scheduler_type == "constant" and self.warmup_steps:
            self._refuse("warmup_steps", "0 with constant; constant_with_warmup has one")
        if self.bf16 and self.fp16:
            self._refuse("fp16", "False with bf16")
        if self.eval_strategy == "no" and (self.load_best_model_at_end or self.save_strategy == "best"):
            self._refuse("eval_strategy", "steps or epoch, so that there is a best model")
        if self.save_strategy == "no" and self.load_best_model_at_end:
            self._refuse("save_strategy", "steps, epoch or best, so that there is a best model to load")

    def _refuse(self, name, must_be, error=ValueError):
        raise error(f"TrainingArguments: {name} is {getattr(self, name)!r}, must be {must_be}")

    def _integer(self, name, least, most=sys.maxsize):
        value = getattr(self, name)
        if isinstance(value, bool):
            self._refuse(name, "an integer", TypeError)
        try:
            value = operator.index(value)  # one of NumPy's becomes Python's, which JSON can hold
        except TypeError:
            self._refuse(name, "an integer", TypeError)
        if value < least:
            self._refuse(name, f"{least} or more")
        if value > most:
            self._refuse(name, f"{most} or less")
        setattr(self, name, value)

    def _number(self, name, holds, condition):
        value = getattr(self, name)
        if not _is_number(value):
            self._refuse(name, "a number", TypeError)
        if not abs(value) <= sys.float_info.max:
            self._refuse(name, "finite")
        if not holds(value):
            self._refuse(name, condition)

    def _one_of(self, name, choices):
        value = getattr(self, name)
        if not isinstance(value, str) or value not in choices:
            self._refuse(name, f"one of {', '.join(choices)}" if len(choices) > 1 else repr(choices[0]))

    @property
    def samples_per_step(self):
        """Blocks of text that one step of the optimiser sees (on each rank that reads its own data)."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def total_steps(self, samples, samples_per_step):
        """Steps of the optimiser over a data set of `samples` blocks."""
        return self.max_steps if self.max_steps > 0 else math.ceil(self.num_train_epochs * samples / samples_per_step)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
