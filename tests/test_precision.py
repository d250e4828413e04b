"""The twin in 16 bits, with layers computed again and compiled: what each promises, and how each fails."""

import json
import math
import re
import sys
import weakref

import numpy as np
import pytest
from test_model import SHAPES, batch, lively
from test_twin import assert_files_equal, at_step, run_of, twin_of, twins_everything
from training import TINY

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from minigpt import cli  # noqa: E402
from minigpt.config import ModelConfig  # noqa: E402
from minigpt.ops import numpy_ops  # noqa: E402
from minigpt.scale import TorchGPT  # noqa: E402
from minigpt.scale.engine import TorchEngine, compiled  # noqa: E402
from minigpt.scale.precision import LossScale  # noqa: E402
from minigpt.train import TrainingArguments  # noqa: E402
from minigpt.train.optimizer import AdamW  # noqa: E402

every_kernels = pytest.mark.parametrize("kernels", ["minigpt", "torch"])


def losses_of(run):
    run.train()
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_the_optimiser_moves_weights_as_ours_does():
    """Twenty steps from the same gradients: to the rounding of float64."""
    twin, rng = twin_of(lively(TINY), dtype=np.float64), np.random.default_rng(0)
    engine = TorchEngine(twin, TrainingArguments(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, weight_decay=0.3))
    engine.begin()
    ours = {name: x.copy() for name, x in twin.params.items()}
    optimizer = AdamW(ours, numpy_ops, 0.8, 0.95, 1e-6, 0.3)
    for step in range(1, 21):
        grads = {name: rng.normal(size=x.shape) for name, x in ours.items()}
        for name, param in twin.named_parameters():
            param.grad = torch.from_numpy(grads[name].copy())
        engine.step(step, 1e-2, 0.7)
        optimizer.step(grads, step, 1e-2, 0.7)
    for name, x in twin.params.items():
        np.testing.assert_allclose(x, ours[name], rtol=1e-12, atol=1e-13, err_msg=name)


# ---------------------------------------------------------------------------------------------------------------
# 16 bits


@every_kernels
@pytest.mark.parametrize("name, bits", [("bf16", 8), ("fp16", 11)])
def test_losses_are_near_those_of_float32(tmp_path, kernels, name, bits):
    """Within one rounding of the 16-bit type, at every step; and not so near that nothing was computed in it."""
    full = losses_of(run_of(tmp_path / "full", TorchGPT(TINY, kernels, seed=3)))
    run = run_of(tmp_path / name, TorchGPT(TINY, kernels, seed=3), **{name: True})
    assert losses_of(run) == pytest.approx(full, rel=2.0**-bits)
    assert losses_of(run_of(tmp_path / "again", TorchGPT(TINY, kernels, seed=3), **{name: True})) != full
    assert all(param.dtype == torch.float32 for param in run.model.parameters())
    evals = [[json.loads(line).get("eval_loss") for line in (tmp_path / folder / "metrics.jsonl").open()]
             for folder in ("full", name)]
    assert evals[0] != evals[1]                                           # evaluation is in that precision too


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_experts_are_chosen_by_scores_of_32_bits(dtype):
    """Under autocast too: the same experts and gates, to the bit, while the experts' own products have 16."""
    layer = twin_of(lively(SHAPES["experts"])).h[0].mlp
    x = torch.randn(2, 50, layer.config.n_embd, generator=torch.Generator().manual_seed(0))
    gates, experts = layer._route(x[0])
    with torch.autocast("cpu", dtype):
        under_autocast, branch = layer._route(x[0]), layer(x)
    assert gates.dtype == torch.float32
    assert torch.equal(under_autocast[0], gates) and torch.equal(under_autocast[1], experts)
    assert not torch.equal(branch, layer(x))


def test_the_loss_scale_moves_as_torchs(monkeypatch):
    monkeypatch.setattr(LossScale, "GROWTH", 3)
    ours, param = LossScale(), torch.zeros(1, requires_grad=True)
    theirs = torch.amp.GradScaler("cpu", init_scale=ours.START, growth_interval=3)
    optimizer = torch.optim.SGD([param], lr=0.0)
    for overflow in np.random.default_rng(0).random(60) < 0.25:
        theirs.scale(param.sum()).backward()
        param.grad.fill_(np.inf if overflow else 1.0)
        theirs.step(optimizer)
        theirs.update()
        ours.overflowed() if overflow else ours.advance()
        assert ours.value == theirs.get_scale()


def test_gradients_that_overflow_are_computed_again(tmp_path, monkeypatch):
    """From a scale that is much too large: the step waits for one at which it can be made, and no batch is left out."""
    full = losses_of(run_of(tmp_path / "full"))
    monkeypatch.setattr(LossScale, "START", 2.0**40)
    run = run_of(tmp_path / "fp16", fp16=True)
    assert losses_of(run) == pytest.approx(full, rel=2.0**-11)
    figures = run.engine.figures()
    assert figures["skipped_steps"] > 5 and figures["loss_scale"] == 2.0**(40 - figures["skipped_steps"])
    logged = [json.loads(line) for line in (tmp_path / "fp16" / "metrics.jsonl").open()]
    assert [entry["skipped_steps"] for entry in logged if "loss" in entry][-1] == figures["skipped_steps"]
    assert {float(state["step"]) for state in run.engine.optimizer.state.values()} == {12.0}


def test_an_overflow_without_end_stops_the_run(tmp_path, monkeypatch):
    run = run_of(tmp_path, fp16=True)
    at_step(run, 9, lambda: monkeypatch.setattr(run.engine, "_norm", lambda: np.inf))
    with pytest.raises(FloatingPointError, match="after step 9: fp16: the gradients overflow at every loss scale from "
                                                 "65536 down to 0.000976562. The last good checkpoint is .*point-8"):
        run.train()


def test_the_loss_scale_survives_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(LossScale, "GROWTH", 5)
    run_of(tmp_path / "whole", fp16=True).train()
    first = run_of(tmp_path / "stopped", fp16=True)
    at_step(first, 9, lambda: (_ for _ in ()).throw(RuntimeError("a crash")))
    with pytest.raises(RuntimeError):
        first.train()
    run_of(tmp_path / "stopped", fp16=True).train(resume_from_checkpoint=True)
    folders = [tmp_path / name / "checkpoint-12" for name in ("whole", "stopped")]
    assert_files_equal(*folders, but=["trainer_state.json"])
    assert json.loads((folders[0] / "loss_scale.json").read_text())["value"] > LossScale.START
    saved = json.loads((folders[1] / "loss_scale.json").read_text())
    wrong = [("value", x) for x in ("x", math.inf, math.nan, 1e300, 3.0, 0.0, 0)]
    wrong += [("good_steps", 1.5), ("good_steps", 5), ("skipped", -1), ("skipped", None)]
    for content in [{}, *({**saved, name: value} for name, value in wrong)]:
        (folders[1] / "loss_scale.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="loss_scale.json: must be an object of value, good_steps, skipped"):
            run_of(tmp_path / "stopped", fp16=True).train(resume_from_checkpoint=True)


def test_what_16_bits_need_is_said(tmp_path):
    with pytest.raises(ValueError, match="bf16 is True, but the weights are torch.bfloat16, must be float32"):
        run_of(tmp_path, TorchGPT(TINY).to(torch.bfloat16), bf16=True)


@pytest.mark.parametrize("first, second", [({}, {"fp16": True}), ({"fp16": True}, {"bf16": True})])
def test_a_run_goes_on_in_another_precision(tmp_path, first, second):
    constant = dict(lr_scheduler_type="constant", warmup_steps=0)
    run_of(tmp_path, **first, **constant).train()
    run = run_of(tmp_path, **second, **constant, max_steps=20)
    with pytest.warns(UserWarning, match=f"engine was ops torch, .*, is now ops torch, .* {[*second][0]}"):
        run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 20 and run.state.log_history[-2]["loss"] < 2


def test_weights_of_16_bits_can_be_trained_and_saved(tmp_path):
    run = run_of(tmp_path, TorchGPT(TINY, seed=3).to(torch.bfloat16))
    assert losses_of(run)[-1] < 2.9 and run.model.dtype == torch.bfloat16
    again = TorchGPT.from_pretrained(tmp_path / "checkpoint-12")
    assert all(np.array_equal(x, run.model.params[name]) for name, x in again.params.items())


# ---------------------------------------------------------------------------------------------------------------
# layers computed again


@every_kernels
@pytest.mark.parametrize("name", ["gpt2", "llama grouped"])
def test_layers_computed_again_give_the_same_bits(kernels, name):
    config = SHAPES[name]
    twin, (tokens, targets) = twin_of(lively(config), kernels), batch(config)
    kept = twins_everything(twin, tokens, targets)
    twin.gradient_checkpointing = True
    for name, x in twins_everything(twin, tokens, targets).items():
        assert np.array_equal(x, kept[name]), name


class Memory(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make, as long as they live."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            storage = x.untyped_storage() if isinstance(x, torch.Tensor) else None
            if storage is not None and storage not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, size):
        self.now -= size


def test_layers_computed_again_take_less_memory():
    """What a layer keeps is about 34 B T C numbers of 4 bytes (attention, MLP and norms); instead, h and branch are."""
    config = ModelConfig(vocab_size=32, block_size=64, n_layer=8, n_head=2, n_embd=64)
    twin, (tokens, targets) = TorchGPT(config), batch(config, B=8)
    peaks = []
    for twin.gradient_checkpointing in (False, True):
        twin.zero_grad()
        with Memory() as memory:
            twin(tokens, targets).backward()
        peaks.append(memory.peak)
    assert peaks[1] < 0.45 * peaks[0], peaks


# ---------------------------------------------------------------------------------------------------------------
# torch.compile


@every_kernels
@pytest.mark.slow
def test_a_compiled_step_is_the_same_step(tmp_path, kernels):
    """In one graph (fullgraph=True raises otherwise), custom operators and all."""
    config = ModelConfig(vocab_size=20, block_size=16, n_layer=1, n_head=2, n_embd=16)
    runs = [run_of(tmp_path / str(on), TorchGPT(config, kernels, seed=3), torch_compile=on, eval_strategy="no",
                   max_steps=6) for on in (False, True)]
    assert runs[1].engine.module is not runs[1].model
    eager, fused = map(losses_of, runs)
    assert fused == pytest.approx(eager, rel=1e-5)


def test_without_a_compiler_training_goes_on(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = TorchGPT(TINY)
    with pytest.warns(UserWarning, match="torch_compile needs a C.. compiler, and there is no no-such-compiler"):
        assert compiled(model) is model


# ---------------------------------------------------------------------------------------------------------------
# the command line


TEXT = "".join(f"{i} bottles of beer on the wall\n" for i in range(99))
SMALL = ["--max-steps", "4", "--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--block-size", "16"]


def test_train_with_the_twin_and_generate(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    command = ["train", "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out"), *SMALL]
    assert cli.main([*command, "--engine", "torch", "--precision", "bf16", "--kernels", "torch"]) == 0
    assert "ops torch, kernels of torch" in capsys.readouterr().out
    assert cli.main(["generate", "--model", str(tmp_path / "out"), "--prompt", "7", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("7")
    assert cli.main([*command, "--engine", "torch", "--precision", "fp16", "--resume"]) == 0
    assert re.search("engine was ops torch, kernels of torch, bf16, is now ops torch, kernels of minigpt, fp16; .*\n$",
                     capsys.readouterr().err)


@pytest.mark.parametrize("options, message", [
    (["--precision", "bf16"], "--precision bf16 needs the torch twin of the model: --engine torch"),
    (["--kernels", "torch"], "--kernels torch needs the torch twin"),
    (["--gradient-checkpointing"], "--gradient-checkpointing needs the torch twin"),
    (["--engine", "torch", "--ops", "cpp"], "--ops is cpp, means nothing with --engine torch"),
    (["--engine", "jax"], "argument --engine: invalid choice: 'jax'"),
    (["--precision", "fp8"], "argument --precision: invalid choice: 'fp8'"),
])
def test_options_that_do_not_fit_are_refused_in_one_line(tmp_path, capsys, options, message):
    (tmp_path / "text.txt").write_text(TEXT)
    assert cli.main(["train", "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_without_torch_one_line_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.setitem(sys.modules, "minigpt.scale.twin", None)
    monkeypatch.delattr("minigpt.scale.twin", raising=False)
    command = ["train", "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out"), "--engine", "torch"]
    assert cli.main(command) == 2
    assert "pip install torch" in capsys.readouterr().err
