"""The Trainer: what it computes (schedule, AdamW, accumulation), and that it says in one line what it cannot do."""

import hashlib
import importlib.util
import json
import math
import os
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from training import BACKENDS, TINY, assert_same_run, at_step, names, tokens, trainer

from minigpt import ops as backends
from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.ops import numpy_ops
from minigpt.text import TextDataset
from minigpt.train import Trainer, TrainingArguments, checkpoint, data
from minigpt.train.optimizer import AdamW, clip_scale, global_norm
from minigpt.train.schedule import learning_rate

# ---------------------------------------------------------------------------------------------------------------
# what is computed


@pytest.mark.parametrize("kind, kwargs", [
    ("cosine", None), ("linear", None), ("constant_with_warmup", None), ("cosine_with_min_lr", {"min_lr": 1e-4})])
def test_the_learning_rate_is_that_of_transformers(kind, kwargs):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    args = TrainingArguments(learning_rate=3e-3, lr_scheduler_type=kind, lr_scheduler_kwargs=kwargs, warmup_steps=7)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-3)
    theirs = transformers.get_scheduler(kind, optimizer, 7, 40, scheduler_specific_kwargs=kwargs)
    for step in range(41):
        assert learning_rate(args, step, 40) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-18), step
        optimizer.step()
        theirs.step()


def test_a_warm_up_below_1_is_a_share_of_all_steps():
    part, whole = TrainingArguments(warmup_steps=0.25), TrainingArguments(warmup_steps=10)
    assert [learning_rate(part, s, 40) for s in range(40)] == [learning_rate(whole, s, 40) for s in range(40)]


def test_adamw_and_clipping_are_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    ours = {"matrix": rng.normal(size=(5, 3)), "bias": rng.normal(size=5)}
    theirs = {name: torch.tensor(p, requires_grad=True) for name, p in ours.items()}
    hyper = dict(lr=1e-2, betas=(0.8, 0.95), eps=1e-6)
    reference = torch.optim.AdamW([{"params": [theirs["matrix"]], "weight_decay": 0.3},
                                   {"params": [theirs["bias"]], "weight_decay": 0.0}], **hyper)
    optimizer = AdamW(ours, numpy_ops, 0.8, 0.95, 1e-6, 0.3)
    for step in range(1, 21):
        grads = {name: rng.normal(size=p.shape) * 10.0 ** rng.integers(-3, 2) for name, p in ours.items()}
        for name, p in theirs.items():
            p.grad = torch.tensor(grads[name])
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        assert global_norm(grads, numpy_ops) == pytest.approx(float(norm), rel=1e-12)
        reference.step()
        optimizer.step(grads, step, 1e-2, clip_scale(float(norm), 0.5))
        for name, p in ours.items():
            np.testing.assert_allclose(p, theirs[name].detach().numpy(), rtol=1e-12, err_msg=f"{name} at step {step}")


def some_labels_ignored(items):
    """As many as the content of the block says, so that micro-batches count differently."""
    ids = np.stack(items)
    return {"input_ids": ids, "labels": np.where(ids * 7 % 20 < ids[:, :1], -100, ids)}


def test_accumulation_is_the_large_batch(tmp_path):
    """In float64, where nothing but the order of additions differs."""
    trained = []
    for size, accumulation in ((8, 1), (2, 4)):
        params = {name: p.astype(np.float64) for name, p in GPT(TINY, "numpy", seed=3).params.items()}
        run = trainer(tmp_path / str(size), GPT(TINY, "numpy", params=params), collator=some_labels_ignored,
                      max_steps=5, warmup_steps=0, save_strategy="no",
                      per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        run.train()
        trained.append((run.model.params, run.state.log_history))
    (large, large_log), (small, small_log) = trained
    for name, param in large.items():
        np.testing.assert_allclose(small[name], param, rtol=1e-9, atol=1e-12, err_msg=name)
    for a, b in zip(large_log, small_log, strict=True):
        for key in {"loss", "grad_norm", "eval_loss"} & a.keys():
            assert b[key] == pytest.approx(a[key], rel=1e-10)


def test_a_causal_model_predicts_the_next_token_and_a_masked_one_its_label():
    for causal in (True, False):
        run = trainer("unused", GPT(ModelConfig(vocab_size=20, block_size=17, n_layer=1, n_head=1, n_embd=8,
                                                causal=causal), "numpy"), collator=some_labels_ignored)
        run.data_collator = data.default_data_collator
        inputs, targets = run._collate([np.arange(17), np.arange(1, 18)], None)
        np.testing.assert_array_equal(targets, inputs + 1 if causal else inputs)
        assert inputs.shape == ((2, 16) if causal else (2, 17))


def test_every_epoch_sees_every_block_once_in_an_order_of_its_own():
    epochs = [data.sample_indices(5, 10 * e, 10, 10) for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert data.sample_indices(5, 7, 16, 10) == sum(epochs, [])[7:23]     # the same whatever was asked before
    assert data.sample_indices(6, 0, 10, 10) != epochs[0]


def test_evaluation_is_the_mean_over_all_tokens(tmp_path):
    run = trainer(tmp_path, per_device_eval_batch_size=5)                 # 5 does not divide the number of blocks
    losses = [run.model.forward(run.eval_dataset[i][None, :-1], run.eval_dataset[i][None, 1:])
              for i in range(len(run.eval_dataset))]
    assert len(losses) % 5
    assert run.evaluate()["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert names(tmp_path) == []                                          # a look at the loss writes nothing


@pytest.mark.parametrize("ops", BACKENDS)
def test_it_learns_and_logs(tmp_path, ops):
    run = trainer(tmp_path, ops=ops, max_steps=80, save_strategy="best", load_best_model_at_end=True)
    output = run.train()
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert log == run.state.log_history
    losses = [entry["loss"] for entry in log if "loss" in entry]
    evals = [entry for entry in log if "eval_loss" in entry]
    assert len(losses) == 40 and losses[0] == pytest.approx(math.log(20), rel=0.1) and losses[-1] < 1.6
    assert output.global_step == 80 and output.training_loss == pytest.approx(np.mean(losses))
    best = min(evals, key=lambda entry: entry["eval_loss"])
    assert run.state.best_metric == best["eval_loss"]
    assert run.state.best_model_checkpoint == f"checkpoint-{best['step']}"
    assert run.evaluate()["eval_loss"] == best["eval_loss"]               # the best weights are back in the model
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_step_is_logged_whatever_logging_steps_says(tmp_path):
    """The mean over the steps since the last log, also over a stop in between."""
    every = trainer(tmp_path / "every", logging_steps=1, eval_strategy="no")
    every.train()
    losses = [entry["loss"] for entry in every.state.log_history]
    for logging_steps, means in ((500, [np.mean(losses)]), (7, [np.mean(losses[:7]), np.mean(losses[7:])])):
        folder = tmp_path / str(logging_steps)
        run = trainer(folder, logging_steps=logging_steps, eval_strategy="no")
        at_step(run, 9, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run.train()
        run = trainer(folder, logging_steps=logging_steps, eval_strategy="no")
        run.train(resume_from_checkpoint=True)
        assert [entry["loss"] for entry in run.state.log_history] == pytest.approx(means, rel=1e-12)
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(means)


@pytest.mark.skipif("cpp" not in BACKENDS, reason="the C++ kernels are not built")
def test_loss_curves_of_both_backends_agree():
    """Those of `minigpt bench curves`, on a smaller model."""
    from minigpt.bench import curves

    losses = curves.compare(lambda line: None, n_layer=2, n_head=2, n_embd=32, block_size=32)
    assert all(len(values) == curves.STEPS and values[-1] < values[0] - 0.5 for values in losses.values())
    shares = curves.shares(losses)
    assert "cpp" in shares and max(shares.values()) <= 1, shares


@pytest.mark.skipif(backends.available()["emulated"] is not None, reason="the emulator needs a C++ compiler")
def test_the_emulated_loss_curve_lies_on_the_others():
    from minigpt.bench import curves

    losses = curves.compare(lambda line: None, steps=6, names=("numpy", "emulated"), n_layer=1, n_head=2, n_embd=16,
                            block_size=16)
    shares = curves.shares(losses)
    assert "emulated" in shares and max(shares.values()) <= 1, shares


@pytest.mark.skipif("cpp" not in BACKENDS, reason="the C++ kernels are not built")
def test_nothing_large_is_allocated_after_the_first_steps(tmp_path):
    run = trainer(tmp_path, GPT(ModelConfig.preset("char"), "cpp"), per_device_train_batch_size=12, max_steps=10,
                  logging_steps=1, eval_strategy="no", save_strategy="no")
    run.train_dataset = TextDataset.from_tokens(tokens(20000, 65), 65)
    step, peaks = run._step, []

    def measured():
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        loss = step()
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        return loss

    run._step = measured
    tracemalloc.start()
    try:
        run.train()
    finally:
        tracemalloc.stop()
    assert peaks[0] > 5e6                                   # the model's buffers: the measurement sees arrays
    assert max(peaks[2:]) < 60e3, peaks                     # batches of 12 x 65 numbers, logs; a matrix has 64 kB


# ---------------------------------------------------------------------------------------------------------------
# folders and arguments


def test_output_dir_must_be_free(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for resume in (None, True):
        with pytest.raises(ValueError, match="output_dir .* holds other things \\(thesis.txt\\)"):
            trainer(tmp_path).train(resume_from_checkpoint=resume)
    assert names(tmp_path) == ["thesis.txt"]


def test_a_run_is_not_written_over(tmp_path):
    trainer(tmp_path).train()
    with pytest.raises(ValueError, match="holds a run already; resume it"):
        trainer(tmp_path).train()


@pytest.mark.skipif(checkpoint.fcntl is None, reason="needs fcntl")
def test_two_trainings_cannot_share_a_folder(tmp_path):
    def intrude():
        for resume in (None, True):
            with pytest.raises(ValueError, match="output_dir .* is in use by another training"):
                trainer(tmp_path / "shared").train(resume_from_checkpoint=resume)

    run, alone = trainer(tmp_path / "shared"), trainer(tmp_path / "alone")
    at_step(run, 6, intrude)
    run.train()
    alone.train()
    assert_same_run(tmp_path / "shared", tmp_path / "alone")


def test_output_dir_must_be_writable(tmp_path):
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "below"] + ([Path("/proc/minigpt")] if Path("/proc").is_dir() else [])
    if os.geteuid() != 0:                                       # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        places.append(tmp_path / "locked")
    for place in places:
        with pytest.raises(OSError, match=f"output_dir {place} cannot be written"):
            trainer(place).train()


@pytest.mark.parametrize("arguments, error, message", [
    (dict(evaluation_strategy="steps"), TypeError, "no argument evaluation_strategy; it is now eval_strategy"),
    (dict(no_cuda=True), TypeError, "no argument no_cuda; leave it out"),
    (dict(bf16=1), TypeError, "bf16 is 1, must be True or False"),
    (dict(bf16=True, fp16=True), ValueError, "fp16 is True, must be False with bf16"),
    (dict(tokenizer=None), TypeError, "no argument tokenizer; the Trainer takes it, as processing_class"),
    (dict(learning_rat=1), TypeError, "no argument learning_rat; did you mean learning_rate?"),
    (dict(zzz=1), TypeError, "no argument zzz; there are output_dir, "),
    (dict(max_steps=1.5), TypeError, "max_steps is 1.5, must be an integer"),
    (dict(learning_rate="1e-3"), TypeError, "learning_rate is '1e-3', must be a number"),
    (dict(logging_steps=True), TypeError, "logging_steps is True, must be an integer"),
    (dict(learning_rate=-1), ValueError, "learning_rate is -1, must be more than 0"),
    (dict(learning_rate=math.nan), ValueError, "learning_rate is nan, must be finite"),
    (dict(per_device_train_batch_size=0), ValueError, "per_device_train_batch_size is 0, must be 1 or more"),
    (dict(adam_beta2=1.0), ValueError, r"adam_beta2 is 1.0, must be in \[0, 1\)"),
    (dict(lr_scheduler_type="cos"), ValueError, "lr_scheduler_type is 'cos', must be one of linear, cosine"),
    (dict(eval_strategy="never"), ValueError, "eval_strategy is 'never', must be one of no, steps, epoch"),
    (dict(report_to="wandb"), ValueError, "report_to is 'wandb', must be 'none'"),
    (dict(lr_scheduler_type="cosine_with_min_lr"), ValueError, "lr_scheduler_kwargs is None, must be {'min_lr'"),
    (dict(lr_scheduler_kwargs={"min_lr": 1}), ValueError, "must be None with linear"),
    (dict(lr_scheduler_type="constant", warmup_steps=5), ValueError, "warmup_steps is 5, must be 0 with constant"),
    (dict(output_dir=None), TypeError, "output_dir is None, must be the name of a folder"),
    (dict(output_dir=""), ValueError, "output_dir is '', must be the name of a folder"),
    (dict(output_dir="a\0b"), ValueError, "output_dir is 'a.*b', must be the name of a folder"),
    (dict(per_device_train_batch_size=10**30), ValueError, "per_device_train_batch_size is 10*, must be 1048576 or"),
    (dict(save_steps=np.ones(2)), TypeError, "save_steps is .*, must be an integer"),
    (dict(max_steps=0), ValueError, "max_steps is 0, must be 1 or more, or -1"),
    (dict(learning_rate=math.inf), ValueError, "learning_rate is inf, must be finite"),
    (dict(num_train_epochs=10**400), ValueError, "num_train_epochs is 10*, must be finite"),
    (dict(lr_scheduler_type=["linear"]), ValueError, "lr_scheduler_type is .*, must be one of linear, cosine"),
    (dict(lr_scheduler_kwargs=5), TypeError, "lr_scheduler_kwargs is 5, must be a dict or None"),
    (dict(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": "x"}), ValueError,
     "lr_scheduler_kwargs is {'min_lr': 'x'}, must be a min_lr between 0 and"),
    (dict(disable_tqdm="no"), TypeError, "disable_tqdm is 'no', must be True, False or None"),
    (dict(load_best_model_at_end=1), TypeError, "load_best_model_at_end is 1, must be True or False"),
    (dict(load_best_model_at_end=True), ValueError, "eval_strategy is 'no', must be steps or epoch"),
])
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=f"TrainingArguments: .*{message}"):
        TrainingArguments(**arguments)


def test_numpys_integers_are_as_good_as_pythons(tmp_path):
    run = trainer(tmp_path, max_steps=np.int64(4), seed=np.uint8(1), per_device_train_batch_size=np.int32(4))
    assert run.train().global_step == 4 and list(checkpoint.listed(tmp_path)) == [4]


def test_names_and_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.TrainingArguments.__dataclass_fields__
    for name, field in TrainingArguments.__dataclass_fields__.items():
        if name in ("parallel", "muon_learning_rate"):          # theirs has plugins and optim_args instead
            continue
        assert name in theirs
        if name not in ("output_dir", "optim"):                 # None becomes ours later; torch's own AdamW
            default = theirs[name].default
            assert field.default == (False if name == "gradient_checkpointing" and default is None else default), name


@pytest.mark.parametrize("arguments, message", [
    (dict(model=None), "model is None, must be a GPT"),
    (dict(args={"max_steps": 1}), "args is {'max_steps': 1}, must be TrainingArguments"),
    (dict(train_dataset=5), "train_dataset is 5, must have a length and be indexable"),
    (dict(eval_dataset=iter([])), "eval_dataset is .*, must have a length and be indexable"),
    (dict(processing_class="gpt2"), "processing_class is 'gpt2', must be a tokenizer"),
])
def test_what_the_trainer_cannot_use_is_refused(arguments, message):
    with pytest.raises(TypeError, match=f"Trainer: {message}"):
        Trainer(**dict(model=GPT(TINY, "numpy")) | arguments)


@pytest.mark.parametrize("batch", [{}, {"input_ids": np.zeros((1, 5), int)}, None])
def test_a_collator_must_make_inputs_and_labels(tmp_path, batch):
    with pytest.raises(ValueError, match="data_collator made .*, must make a dict of input_ids and labels"):
        trainer(tmp_path, collator=lambda items: batch).train()


def test_an_array_is_a_dataset_too(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=2, save_strategy="no", eval_strategy="epoch")
    blocks = tokens().reshape(-1, 16)
    assert Trainer(GPT(TINY, "numpy"), args, train_dataset=blocks, eval_dataset=blocks[:4]).train().global_step == 2


def test_the_trainer_names_bad_input(tmp_path):
    model, args = GPT(TINY, "numpy"), TrainingArguments(output_dir=str(tmp_path / "out"), max_steps=1)
    with pytest.raises(TypeError, match="Trainer: there is no argument tokenizer; .* as processing_class"):
        Trainer(model, args, tokenizer=None)
    with pytest.raises(TypeError, match="Trainer: there is no argument train_datset; did you mean train_dataset?"):
        Trainer(model, args, train_datset=[])
    with pytest.raises(ValueError, match="there is no train_dataset"):
        Trainer(model, args).train()
    with pytest.raises(ValueError, match="train_dataset is empty"):
        Trainer(model, args, train_dataset=[]).train()
    with pytest.raises(ValueError, match="eval_strategy is 'steps', but there is no eval_dataset"):
        Trainer(model, TrainingArguments(eval_strategy="steps"), train_dataset=[np.arange(5)])
    with pytest.raises(ValueError, match="there is no eval_dataset"):
        Trainer(model, args).evaluate()
    with pytest.raises(ValueError, match="tokens has T = 29, must be at most 16"):
        Trainer(model, args, train_dataset=[np.arange(30) % 20]).train()
    with pytest.raises(ValueError, match=r"tokens.* is 20, must be in 0 \.\. 19"):
        Trainer(model, args, train_dataset=[np.arange(10, 22)]).train()


@pytest.mark.slow
@pytest.mark.skipif("cpp" not in BACKENDS, reason="the C++ kernels are not built")
def test_tiny_shakespeare_reaches_nanogpts_loss(tmp_path):
    """nanoGPT's setting for a CPU, at three times its learning rate: a validation loss of 1.90 or lower."""
    from minigpt import cli

    text = Path(__file__).parent.parent / "tutorials" / "data" / "shakespeare.txt"
    assert hashlib.sha256(text.read_bytes()).hexdigest().startswith("86c4e6aa9db7c042")
    argv = ["train", "--data", str(text), "--out", str(tmp_path / "out"), "--learning-rate", "3e-3", "--min-lr", "1e-4"]
    assert cli.main(argv) == 0
    log = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 2000 and log[-1]["eval_loss"] <= 1.90
