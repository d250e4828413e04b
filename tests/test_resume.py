"""Stops of every kind: killed at any moment, interrupted, out of disk or gone astray, a run loses nothing that was
saved, and resumes to the same bits."""

import errno
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from training import ROOT, at_step, names, tokens, trainer, weights

from minigpt.config import ModelConfig
from minigpt.files import SafeTensors, write_safetensors
from minigpt.model import GPT
from minigpt.text import TextDataset
from minigpt.train import TrainingArguments, checkpoint
from minigpt.train.trainer import EXACT

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
import training
from minigpt.train import checkpoint

folder, every, offset = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
reference = training.trainer(folder / "reference", save_total_limit=1)
reference.train()

def run_until(events, target):
    '''Trains in a child process that is killed just before its operation number `events` on a file of the run.'''
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    seen = 0
    def count(event, args):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and str(target) in str(args[0]):
            seen += 1
            if seen == events:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    sys.stderr = open(os.devnull, "w")
    training.trainer(target, save_total_limit=1).train(resume_from_checkpoint=True)
    os._exit(0)

kills, events = 0, offset
while True:
    target = folder / f"killed-{{events}}"
    if run_until(events, target) == 0:
        break                                                    # a run has fewer operations than that
    kills += 1
    kills += run_until(events // 2 + 3, target) != 0             # and once more, somewhere else
    assert run_until(0, target) == 0
    training.assert_same_run(reference.args.output_dir, target)
    events += every
print(kills)
"""


def kill_everywhere(tmp_path, every):
    """Kills runs before every `every`-th operation on files, resumes, and compares; returns the number of kills."""
    code = KILLED.format(tests=str(ROOT / "tests"), root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(every), "1"], capture_output=True, text=True,
                          env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_while_it_writes_ends_with_the_same_bits(tmp_path):
    assert kill_everywhere(tmp_path, 19) > 8


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_many_more_places_ends_with_the_same_bits(tmp_path):
    assert kill_everywhere(tmp_path, 2) > 80


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path):
    whole, run = trainer(tmp_path / "whole"), trainer(tmp_path / "stopped")
    whole.train()
    before = signal.getsignal(signal.SIGINT)
    at_step(run, 6, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="stopped after step 7 of 12; .*checkpoint-7 is saved, go on"):
        run.train()
    assert signal.getsignal(signal.SIGINT) is before
    again = trainer(tmp_path / "stopped")
    again.train(resume_from_checkpoint=True)
    assert weights(again.model) == weights(whole.model)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    run = trainer(tmp_path)
    at_step(run, 6, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)         # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run.train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(checkpoint.listed(tmp_path)) == [4]


def test_nan_stops_and_the_last_good_checkpoint_stays(tmp_path):
    run = trainer(tmp_path)
    at_step(run, 9, lambda: run.model.grads["wte"].fill(np.nan))
    with pytest.raises(FloatingPointError, match="after step 9: .*the gradient's norm nan .*checkpoint-8"):
        run.train()
    assert list(checkpoint.listed(tmp_path)) == [4, 8]
    assert all(np.isfinite(param).all() for param in run.model.params.values())    # the bad step did not reach them


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_learning_rate_that_explodes_stops_and_saves_nothing_broken(tmp_path):
    run = trainer(tmp_path, learning_rate=1e38, save_steps=1, warmup_steps=0, eval_strategy="no")
    with pytest.raises(FloatingPointError, match="Try a lower learning_rate, or a longer warm-up"):
        run.train()
    muon = trainer(tmp_path / "muon", optim="muon", muon_learning_rate=1e38, warmup_steps=0, eval_strategy="no")
    with pytest.raises(FloatingPointError, match="Try a lower learning_rate or muon_learning_rate, or a longer"):
        muon.train()
    for path in checkpoint.listed(tmp_path).values():
        GPT.from_pretrained(path)


@pytest.mark.parametrize("change, named", [
    (dict(learning_rate=2e-2), "learning_rate was 0.01, is now 0.02"),
    (dict(per_device_train_batch_size=2), r"samples_per_step was 4, is now 2 \(per_device_train_batch_size x"),
    (dict(max_steps=20), "max_steps was 12, is now 20"),
    (dict(seed=1), "seed was 42, is now 1"),
    (dict(model=GPT(ModelConfig(vocab_size=20, block_size=16, n_layer=1, n_head=2, n_embd=16), "numpy")),
     "the model's n_layer was 2, is now 1"),
    (dict(data=tokens()[::-1]), "train_dataset was 211 blocks of 17, crc32 .*, is now 235 blocks"),
])
def test_a_resumed_run_must_be_the_same_run(tmp_path, change, named):
    trainer(tmp_path).train()
    run = trainer(tmp_path, **{name: value for name, value in change.items() if name != "data"})
    if "data" in change:
        run.train_dataset = TextDataset.from_tokens(change["data"], 17)
    with pytest.raises(ValueError, match=f"cannot resume from .*checkpoint-12: {named}"):
        run.train(resume_from_checkpoint=True)


def test_every_argument_is_compared_or_known_not_to_matter():
    """A new one has to be put into one of these: what the weights depend on must be the same in a resumed run."""
    by_another_name = {"per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
                       "bf16", "fp16", "torch_compile"}
    about_the_folder = {"output_dir", "logging_steps", "eval_strategy", "eval_steps", "per_device_eval_batch_size",
                        "save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end", "report_to",
                        "disable_tqdm"}
    the_same_numbers = {"gradient_checkpointing", "parallel"}
    groups = [EXACT, by_another_name, about_the_folder, the_same_numbers]
    assert sorted(itertools.chain(*groups)) == sorted(field.name for field in fields(TrainingArguments))


def test_a_constant_learning_rate_lets_a_run_be_prolonged(tmp_path):
    constant = dict(lr_scheduler_type="constant", warmup_steps=0)
    whole = trainer(tmp_path / "whole", max_steps=20, **constant)
    whole.train()
    trainer(tmp_path / "parts", **constant).train()
    rest = trainer(tmp_path / "parts", max_steps=20, **constant)
    rest.train(resume_from_checkpoint=True)
    assert weights(rest.model) == weights(whole.model)


def test_resume_from_an_older_checkpoint(tmp_path):
    """In a folder of its own: the newer ones are somebody's work."""
    first, second = tmp_path / "first", tmp_path / "second"
    whole = trainer(first)
    whole.train()
    with pytest.raises(ValueError, match=r"checkpoint-4', but .* holds newer ones \(checkpoint-8, checkpoint-12\)"):
        trainer(first).train(resume_from_checkpoint=first / "checkpoint-4")
    assert list(checkpoint.listed(first)) == [4, 8, 12]
    shutil.copytree(first / "checkpoint-4", second / "checkpoint-4")
    again = trainer(second)
    again.train(resume_from_checkpoint=second / "checkpoint-4")
    assert weights(again.model) == weights(whole.model) and list(checkpoint.listed(second)) == [4, 8, 12]
    with pytest.raises(ValueError, match="resume_from_checkpoint is '.*checkpoint-5', must be True or a checkpoint in"):
        trainer(first).train(resume_from_checkpoint=first / "checkpoint-5")


def test_old_checkpoints_go_but_not_the_best(tmp_path):
    run = trainer(tmp_path, save_steps=2, eval_steps=6, save_total_limit=2)
    evaluate = run.evaluate
    run.evaluate = lambda: evaluate() | {"eval_loss": float(run.state.global_step)}        # the first is the best
    run.train()
    assert list(checkpoint.listed(tmp_path)) == [6, 10, 12] and run.state.best_model_checkpoint == "checkpoint-6"


def test_a_full_disk_costs_nothing_that_was_saved(tmp_path, monkeypatch):
    whole = trainer(tmp_path / "whole")
    whole.train()
    synced, fsync = [], os.fsync

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) > 20:                       # in the second checkpoint or the third
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    run = trainer(tmp_path / "full", eval_strategy="no")
    whole_without = trainer(tmp_path / "whole2", eval_strategy="no")
    whole_without.train()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"written \(No space left on device\); .*checkpoint-\d+ is complete"):
        run.train()
    monkeypatch.undo()
    assert [name for name in names(tmp_path / "full") if name.startswith(".")] == [".lock"]
    again = trainer(tmp_path / "full", eval_strategy="no")
    again.train(resume_from_checkpoint=True)
    assert weights(again.model) == weights(whole_without.model) == weights(whole.model)


def test_a_damaged_checkpoint_is_named(tmp_path):
    trainer(tmp_path).train()
    for name in ("trainer_state.json", "optimizer.safetensors", "model.safetensors"):
        path = tmp_path / "checkpoint-12" / name
        content = path.read_bytes()
        path.write_bytes(content[:len(content) // 2])
        with pytest.raises(ValueError, match=f"checkpoint-12/{name}"):
            trainer(tmp_path).train(resume_from_checkpoint=True)
        path.write_bytes(content)


def test_a_broken_model_replaces_no_good_one(tmp_path):
    run = trainer(tmp_path, max_steps=1, save_strategy="no", eval_strategy="no")
    run.train()
    run.save_model()
    before = (tmp_path / "model.safetensors").read_bytes()
    run.model.params["wte"][0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="the weights are no longer finite numbers"):
        run.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_moments_that_cannot_be_are_refused(trained):
    path = trained / "checkpoint-12" / "optimizer.safetensors"
    content, saved = path.read_bytes(), SafeTensors(path)
    moments = {name: np.array(saved[name]) for name in saved.keys()}
    m, v = moments["m.wte"], moments["v.wte"]
    for change, message in [({"m.wte": m * np.nan}, "m.wte must be finite"), ({"v.wte": v - 1}, "v.wte must be finite"),
                            ({"m.wte": m.astype(int)}, "m.wte is int64"), ({"m.wte": m[1:]}, "m.wte is float32"),
                            ({"m.more": m}, "m.more is none of this optimiser")]:
        write_safetensors(path, moments | change)
        with pytest.raises(ValueError, match=f"checkpoint-12/optimizer.safetensors: {message}"):
            trainer(trained).train(resume_from_checkpoint=True)
    path.write_bytes(content)


@pytest.mark.parametrize("field, value, must_be", [
    ("global_step", -5, "the number of its folder"),
    ("global_step", 4.5, "the number of its folder"),
    ("global_step", 10**9, "the number of its folder"),
    ("max_steps", None, "an integer"),
    ("max_steps", -5, "an integer, 0 or more"),
    ("epoch", True, "a float"),
    ("epoch", -3.0, "a float, 0 or more"),
    ("best_metric", math.nan, "a float or null"),
    ("best_model_checkpoint", 5, "the name of a checkpoint beside it or null"),
    ("best_model_checkpoint", "../../etc", "the name of a checkpoint beside it or null"),
    ("best_model_checkpoint", "checkpoint-5", "the name of a checkpoint beside it or null"),
    ("unlogged_loss", "x", "a float"),
    ("unlogged_steps", -1, "an integer, from 0 to global_step"),
    ("unlogged_steps", 13, "an integer, from 0 to global_step"),
    ("log_history", None, "a list of objects"),
    ("log_history", [1], "a list of objects"),
    ("log_history", [{"loss": 1.0}], "a list of objects"),
    ("log_history", [{"epoch": 0.5, "loss": "x", "step": 1}], "a list of objects"),
    ("log_history", [{"epoch": 0.5, "loss": math.inf, "step": 1}], "a list of objects"),
    ("log_history", [{"epoch": 0.5, "loss": 10**30, "step": 1}], "a list of objects"),
    ("run", [1], "an object"),
])
def test_a_state_that_was_edited_is_refused_and_harms_nothing(trained, field, value, must_be):
    path = trained / "checkpoint-12" / "trainer_state.json"
    content = path.read_text()
    path.write_text(json.dumps(json.loads(content) | {field: value}))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {field} is {value!r}, must be {must_be}")):
        trainer(trained).train(resume_from_checkpoint=True)
    path.write_text(content)
    assert list(checkpoint.listed(trained)) == [4, 8, 12]


@pytest.mark.parametrize("content", ["null", "{}", '{"run": {}}', "[" * 100000])
def test_a_state_that_is_none_is_refused(trained, content):
    path = trained / "checkpoint-12" / "trainer_state.json"
    before = path.read_text()
    path.write_text(content)
    with pytest.raises(ValueError, match="checkpoint-12/trainer_state.json: (must be|holds a)"):
        trainer(trained).train(resume_from_checkpoint=True)
    path.write_text(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("trained")
    trainer(folder).train()
    return folder
