"""The Trainer: batches in, a trained model and its log out.

A run is a pure function of its arguments, its data and the model's first weights: step s always sees the same blocks
(data.py), and everything else that the next step depends on is in the checkpoint. That is why a run that is stopped at
any moment and resumed ends with the same bits as one that was left alone. Read `train` first, then `_step`. What the
model computes is an engine's business (engine.py): that of GPT over `ops`, or that of its torch twin.
"""

import json
import math
import reprlib
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files.atomic import atomic_write
from ..ranks import is_restart
from ..text.collators import DataCollatorForLanguageModeling
from . import checkpoint, data
from .arguments import TrainingArguments, unknown_argument
from .engine import IGNORED, make_engine
from .optimizer import clip_scale
from .plot import plot_losses
from .progress import Progress
from .schedule import learning_rate
from .state import FILE as STATE
from .state import TrainerState, read_state, write_state

# What computes may change in the middle of a run, and with it the last bits of the weights; nothing else may.
ENGINE = "engine"
# The arguments that the weights depend on. The length of the run joins them where the schedule stretches over it.
SAMPLES = "samples_per_step"
EXACT = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "optim",
         "muon_learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed")


class TrainOutput(NamedTuple):
    global_step: int
    training_loss: float  # mean over the steps of this call
    metrics: dict


class Trainer:
    """Trains `model`, a GPT or a TorchGPT, on `train_dataset`, an indexable of token blocks.

    data_collator turns a list of items into {"input_ids": (B, T), "labels": (B, T)}; labels of -100 do not count.
    Where the model is causal, position t is trained to predict label t + 1, so a block of T + 1 tokens gives T
    positions. A DataCollatorForLanguageModeling decides on the objective: the model is made bidirectional for mlm=True,
    causal for mlm=False, and a warning says so, because with the other attention it would learn nothing of use (a
    causal model sees half of the text around a mask, a bidirectional one the token that it is to predict).
    processing_class is the tokenizer, saved beside the weights.
    """

    def __init__(self, model, args=None, data_collator=None, train_dataset=None, eval_dataset=None,
                 processing_class=None, **unknown):
        for name in unknown:
            known = ["model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class"]
            raise unknown_argument("Trainer", name, known)
        if not isinstance(args, TrainingArguments | None):
            raise TypeError(f"Trainer: args is {args!r}, must be TrainingArguments")
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            if dataset is not None and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
                raise TypeError(f"Trainer: {name} is {dataset!r}, must have a length and be indexable")
        if processing_class is not None and not hasattr(processing_class, "save_pretrained"):
            raise TypeError(f"Trainer: processing_class is {processing_class!r}, must be a tokenizer")
        self.model = model
        self.args = args or TrainingArguments()
        self.engine = make_engine(model, self.args)
        self.ranks = self.engine.ranks
        self._samples_per_step = self.args.samples_per_step * self.ranks.data_ranks
        self.data_collator = data_collator or data.default_data_collator
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.processing_class = processing_class
        self.state = TrainerState()
        self._progress = None  # made by train()
        self._set_objective()
        if self.args.eval_strategy != "no" and _is_empty(eval_dataset):
            raise ValueError(f"Trainer: eval_strategy is {self.args.eval_strategy!r}, but there is no eval_dataset")

    def _set_objective(self):
        """Gives the model the attention that the collator's objective needs."""
        collator, config = self.data_collator, self.model.config
        if collator is data.default_data_collator and not config.causal:
            raise ValueError("Trainer: the model is bidirectional (causal=False) and would see the tokens that it is "
                             "to predict; give data_collator=DataCollatorForLanguageModeling(tokenizer)")
        if not isinstance(collator, DataCollatorForLanguageModeling):
            return
        tokens = len(collator.tokenizer)
        if tokens > config.vocab_size:
            raise ValueError(f"Trainer: data_collator's tokenizer has {tokens} tokens, the model rows for "
                             f"{config.vocab_size}; call model.resize_token_embeddings({tokens}) first")
        if config.causal == collator.mlm:
            self.model.config = replace(config, causal=not collator.mlm)
            ways = "both ways" if collator.mlm else "to the left only"
            warnings.warn(f"Trainer: the model now attends {ways} (causal={not collator.mlm}), as data_collator with "
                          f"mlm={collator.mlm} needs", stacklevel=3)

    # -----------------------------------------------------------------------------------------------------------
    # the run

    def train(self, resume_from_checkpoint=None):
        """Trains to the end, and returns a TrainOutput.

        resume_from_checkpoint: True goes on from the newest complete checkpoint in output_dir (from the beginning,
        if there is none yet); a path, from that one. Raises ValueError if output_dir or the checkpoint does not fit,
        OSError if output_dir cannot be written, FloatingPointError if the loss is no longer a number, and
        KeyboardInterrupt after Ctrl-C or SIGTERM, when everything is saved.
        """
        self._check()
        with checkpoint.locked(self.args.output_dir) if self.ranks.rank == 0 else nullcontext():
            return self._train(resume_from_checkpoint or is_restart())

    def _train(self, resume):
        args, state = self.args, self._start(resume)
        first, started, losses = state.global_step, time.perf_counter(), 0.0
        self._progress = Progress(first, state.max_steps, args.disable_tqdm, silent=self.ranks.rank != 0)
        try:
            with _interruptible() as interrupted:
                self._log_clock, self._log_tokens = started, 0
                while state.global_step < state.max_steps:
                    losses += self._step()
                    self._after_step()
                    if self.ranks.any(interrupted.is_set()) and state.global_step < state.max_steps:
                        raise KeyboardInterrupt(
                            f"stopped after step {state.global_step} of {state.max_steps}; {self._save()} is saved, "
                            "go on with train(resume_from_checkpoint=True)")
        finally:
            self._progress.close()
            self._progress = None
        if args.save_strategy != "no":
            self._save()
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self.engine.load_weights(Path(args.output_dir) / state.best_model_checkpoint)
        self._draw()
        mean = losses / max(1, state.global_step - first)
        return TrainOutput(state.global_step, mean, {"train_loss": mean,
                                                     "train_runtime": time.perf_counter() - started})

    def _step(self):
        """One step of the optimiser over all micro-batches; returns the loss."""
        args, state = self.args, self.state
        micro_batches = list(self._micro_batches(state.global_step))
        self._log_tokens += sum(tokens.size for tokens, _ in micro_batches) * self.ranks.data_ranks
        lr = learning_rate(args, state.global_step, state.max_steps)
        try:
            loss, norm = self.engine.gradients(micro_batches)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):      # torch's is a RuntimeError
                raise
            raise MemoryError(f"out of memory in step {state.global_step + 1}; lower per_device_train_batch_size (now "
                              f"{args.per_device_train_batch_size}) and raise gradient_accumulation_steps as much, or "
                              "set gradient_checkpointing") from error
        except FloatingPointError as error:
            raise self._diverged(error) from None
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(f"the loss is {loss}, the gradient's norm {norm} (learning rate {lr:.3g})")
        self.engine.step(state.global_step + 1, lr, clip_scale(norm, args.max_grad_norm))
        state.global_step += 1
        state.epoch = state.global_step * self._samples_per_step / len(self.train_dataset)
        state.unlogged_loss += loss
        state.unlogged_steps += 1
        self._last = {"grad_norm": norm, "learning_rate": lr, **self.engine.figures()}
        return loss

    def _after_step(self):
        """Logs, evaluates and saves where it is time to. The last step is always logged and evaluated."""
        args, state = self.args, self.state
        self._progress.advance()
        last = state.global_step == state.max_steps
        if last or state.global_step % args.logging_steps == 0:
            now = time.perf_counter()
            self._log({"loss": state.unlogged_loss / state.unlogged_steps, **self._last,
                       "tokens_per_second": self._log_tokens / (now - self._log_clock)})
            state.unlogged_loss, state.unlogged_steps = 0.0, 0
            self._log_clock, self._log_tokens = now, 0
        improved = False
        due = self._is_time(args.eval_strategy, args.eval_steps or args.logging_steps)
        if due or (last and args.eval_strategy != "no"):
            improved = self._evaluate_for_best()
        if self._is_time(args.save_strategy, args.save_steps) or (improved and args.save_strategy != "no"):
            self._save()

    def _is_time(self, strategy, every):
        step, samples = self.state.global_step, len(self.train_dataset)
        if strategy == "epoch":
            return step * self._samples_per_step // samples > (step - 1) * self._samples_per_step // samples
        return strategy == "steps" and step % every == 0

    def _micro_batches(self, step):
        """The inputs and targets of one step, micro-batch by micro-batch; of each the part that this rank reads."""
        ranks, seed, size = self.ranks, self.args.seed, self.args.per_device_train_batch_size
        start, count = step * self._samples_per_step, self._samples_per_step
        indices = data.sample_indices(seed, start, count, len(self.train_dataset))
        for i in range(ranks.data_rank * size, count, ranks.data_ranks * size):
            keys = [(seed, 1, start + j) for j in range(i, i + size)]
            yield self._collate([self.train_dataset[j] for j in indices[i:i + size]], keys)

    def _collate(self, items, keys):
        """tokens (B, T), targets (B, T): the targets stand where they are to be predicted. What a collator of ours
        draws for an item follows from its key: in training its place in the run, in evaluation in the data."""
        ours = isinstance(self.data_collator, DataCollatorForLanguageModeling)
        batch = self.data_collator(items, keys) if ours else self.data_collator(items)
        if not isinstance(batch, Mapping) or not {"input_ids", "labels"} <= batch.keys():
            raise ValueError(f"Trainer: data_collator made {reprlib.repr(batch)}, must make a dict of input_ids and "
                             "labels")
        tokens, labels = np.asarray(batch["input_ids"]), np.asarray(batch["labels"])
        if self.model.config.causal:
            tokens, labels = tokens[:, :-1], labels[:, 1:]
        return np.ascontiguousarray(tokens), np.ascontiguousarray(labels)

    # -----------------------------------------------------------------------------------------------------------
    # evaluation and the log

    def evaluate(self):
        """The mean loss over eval_dataset: {"eval_loss": ..., ...}, which is logged too."""
        if _is_empty(self.eval_dataset):
            raise ValueError("Trainer.evaluate: there is no eval_dataset")
        started, total, counted, samples = time.perf_counter(), 0.0, 0, len(self.eval_dataset)
        size, ranks = self.args.per_device_eval_batch_size, self.ranks
        for first in range(0, samples, size * ranks.data_ranks):          # a batch for every rank ...
            start = first + size * ranks.data_rank
            chosen = range(start, min(start + size, samples)) or [0]      # ... though none may be left: all compute
            tokens, targets = self._collate([self.eval_dataset[i] for i in chosen],
                                            [(self.args.seed, 2, i) for i in chosen])
            if start >= samples:
                targets = np.full_like(targets, IGNORED)
            total += self.engine.sum_of_losses(tokens, targets)
            counted += int(np.count_nonzero(targets != IGNORED))
        total, counted = ranks.sum(total, counted)
        metrics = {"eval_loss": total / max(1, counted), "eval_runtime": time.perf_counter() - started}
        self._log(metrics)
        return metrics

    def _evaluate_for_best(self):
        """Evaluates; True if the loss was the lowest so far."""
        state, before = self.state, time.perf_counter()
        loss = self.evaluate()["eval_loss"]
        if not math.isfinite(loss):
            raise self._diverged(f"the validation loss is {loss}")
        self._draw()
        self._log_clock += time.perf_counter() - before  # tokens_per_second is about training
        if state.best_metric is not None and loss >= state.best_metric:
            return False
        state.best_metric = loss
        if self.args.save_strategy != "no":
            state.best_model_checkpoint = f"checkpoint-{state.global_step}"
        return True

    def _log(self, logs):
        entry = {**logs, "epoch": self.state.epoch, "step": self.state.global_step}
        self.state.log_history.append(entry)
        if self._progress and self.ranks.rank == 0:
            self._progress.log(logs)
            with open(Path(self.args.output_dir) / "metrics.jsonl", "ab") as file:
                file.write(_json_line(entry))

    def _draw(self):
        if self.ranks.rank == 0:
            path = Path(self.args.output_dir) / "loss.png"
            plot_losses(path, {"": self.state.log_history}, self.model.config.vocab_size)

    def _diverged(self, what):
        kept = list(checkpoint.listed(self.args.output_dir).values())
        return FloatingPointError(
            f"training has stopped after step {self.state.global_step}: {what}. "
            + (f"The last good checkpoint is {kept[-1]}. " if kept else "There is no checkpoint yet. ")
            + f"Try a lower learning_rate{' or muon_learning_rate' * (self.args.optim == 'muon')}, or a longer warm-up")

    # -----------------------------------------------------------------------------------------------------------
    # checkpoints

    def save_model(self, output_dir=None):
        """Writes the weights, the configuration and the tokenizer into a folder (output_dir of the arguments).
        FloatingPointError, and what is there stays, if the weights are not all finite numbers."""
        if not self.engine.is_finite():
            raise self._diverged("the weights are no longer finite numbers")
        self.engine.save_model(output_dir or self.args.output_dir, self.processing_class)

    def _save(self):
        """Makes a checkpoint of this step, if there is none yet, and returns its folder. Of the older ones it keeps the
        best, and as many as save_total_limit allows."""
        folder, state = self.args.output_dir, self.state
        if state.global_step not in checkpoint.listed(folder):
            if not self.engine.is_finite():
                raise self._diverged("the weights are no longer finite numbers")
            checkpoint.write(folder, state.global_step, self._fill_checkpoint, self.ranks)
        if self.args.save_total_limit and self.ranks.rank == 0:
            for path in list(checkpoint.listed(folder).values())[:-self.args.save_total_limit]:
                if path.name != state.best_model_checkpoint:
                    checkpoint.remove(path)
        return Path(folder) / f"checkpoint-{state.global_step}"

    def _fill_checkpoint(self, folder):
        self.engine.save(folder, self.processing_class)
        if self.ranks.rank == 0:
            write_state(folder, self.state, self._run)

    def _check(self):
        """Makes output_dir, unless it is there; refuses one that is not ours to write, and a lack of data."""
        if _is_empty(self.train_dataset):
            raise ValueError("Trainer.train: train_dataset is empty" if self.train_dataset is not None else
                             "Trainer.train: there is no train_dataset")
        folder = Path(self.args.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # the folder may be there and still refuse
                pass
        except OSError as error:
            raise OSError(f"output_dir {folder} cannot be written ({error.strerror or error})") from error
        checkpoint.holds_run(folder)  # ValueError if it holds anything else

    def _start(self, resume):
        """Sets the run up in output_dir, at its beginning or at a checkpoint; returns the state."""
        args, folder = self.args, Path(self.args.output_dir)
        source = self._source(resume)
        self.engine.begin()
        steps = args.total_steps(len(self.train_dataset), self._samples_per_step)
        self._run = self._describe(steps)
        self.ranks.agree(self._run)
        self.state = self._load(source) if source else TrainerState()
        self.state.max_steps = steps
        if resume and self.ranks.rank == 0:  # the log may be ahead of the checkpoint
            with atomic_write(folder / "metrics.jsonl") as file:
                file.writelines(_json_line(entry) for entry in self.state.log_history)
        return self.state

    def _source(self, resume):
        """The checkpoint to start from, or None for the beginning."""
        folder = Path(self.args.output_dir)
        if checkpoint.holds_run(folder) and not resume:
            raise ValueError(f"output_dir {folder} holds a run already; resume it (resume_from_checkpoint=True), or "
                             "choose another folder")
        self.ranks.wait()
        if self.ranks.rank == 0:
            checkpoint.remove_leftovers(folder)
        checkpoints = checkpoint.listed(folder)
        if resume in (None, True, False):
            return list(checkpoints.values())[-1] if checkpoints else None
        if Path(resume).resolve() not in [path.resolve() for path in checkpoints.values()]:
            raise ValueError(f"resume_from_checkpoint is {str(resume)!r}, must be True or a checkpoint in {folder}: "
                             + (", ".join(path.name for path in checkpoints.values()) or "there is none yet"))
        names = [path.name for path in checkpoints.values()]
        newer = names[names.index(Path(resume).resolve().name) + 1:]
        if newer:
            raise ValueError(f"resume_from_checkpoint is {str(resume)!r}, but {folder} holds newer ones "
                             f"({', '.join(newer)}), which would be lost; go on from the newest "
                             "(resume_from_checkpoint=True), or copy it and the older ones to another output_dir")
        return Path(resume)

    def _describe(self, steps):
        """All that the weights depend on, as it comes back from JSON."""
        args, collator, tokenizer = self.args, self.data_collator, self.processing_class
        ours = isinstance(collator, DataCollatorForLanguageModeling)
        plain = "causal" if collator is data.default_data_collator else type(collator).__name__
        run = {"data_collator": collator.fingerprint() if ours else plain,
               "tokenizer": f"of {len(tokenizer)} tokens" if hasattr(tokenizer, "__len__") else None,
               "train_dataset": data.fingerprint(self.train_dataset), SAMPLES: self._samples_per_step,
               "max_steps": None if args.lr_scheduler_type.startswith("constant") else steps}
        run |= {name: getattr(args, name) for name in EXACT}
        run |= {f"the model's {name}": value for name, value in asdict(self.model.config).items()}
        run[ENGINE] = self.engine.describe()
        return json.loads(json.dumps(run))

    def _load(self, folder):
        """Takes weights, moments and state from a checkpoint."""
        state, run = read_state(folder)
        if run.keys() != self._run.keys():
            names = ", ".join(sorted(run.keys() ^ self._run.keys()))
            raise ValueError(f"{folder / STATE}: run has or lacks {names}; it is damaged, or of another version")
        for name, now in self._run.items():                               # what others follow from stands first
            if run[name] == now:
                continue
            what = f"{name} was {run[name]}, is now {now}"
            if name == ENGINE:
                if self.ranks.rank == 0:
                    warnings.warn(f"going on from {folder}: {what}; the weights will not be, to the last bits, those "
                                  "of a run that stays on one", stacklevel=5)
                continue
            if name == SAMPLES:
                what += (f" (per_device_train_batch_size x gradient_accumulation_steps x {self.ranks.data_ranks}, "
                         "the ranks with data of their own)")
            raise ValueError(f"cannot resume from {folder}: {what}; give what it was, or start a new run in another "
                             "output_dir")
        self.engine.load(folder, state.global_step)
        return state


def _is_empty(dataset):
    return dataset is None or len(dataset) == 0


def _json_line(entry):
    return json.dumps(entry).encode() + b"\n"


@contextmanager
def _interruptible():
    """Yields an event that Ctrl-C or SIGTERM sets, so that the step at hand is finished; a second one stops at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield interrupted
        return

    def remember(number, frame):
        interrupted.set()
        restore()

    def restore():
        for which, handler in before.items():
            signal.signal(which, handler)

    before = {which: signal.signal(which, remember) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        restore()
