"""The torch twin: the numbers of model.py, every gradient; one folder for both; and the Trainer, which drives it to the
same losses and resumes it to the same bits."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from test_model import SHAPES, assert_within_budget, batch, everything, lively, on
from training import ROOT, TINY, trainer

torch = pytest.importorskip("torch")

from minigpt.bench import curves  # noqa: E402
from minigpt.model import GPT  # noqa: E402
from minigpt.scale import TorchGPT  # noqa: E402
from minigpt.scale.twin import KERNELS  # noqa: E402

every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
every_kernels = pytest.mark.parametrize("kernels", KERNELS)


def twin_of(model, kernels="minigpt", dtype=np.float32):
    """The same weights in a twin."""
    return TorchGPT(model.config, kernels, params={name: x.astype(dtype) for name, x in model.params.items()})


def twins_everything(twin, tokens, targets):
    """What test_model.everything gives."""
    twin.zero_grad()
    loss = twin(tokens, targets)
    loss.backward()
    results = {"logits": twin(tokens), "loss": loss, "losses": twin(tokens, targets, reduction="none")}
    results |= {f"gradient of {name}": param.grad for name, param in twin.named_parameters()}
    return {name: x.detach().numpy().copy() for name, x in results.items()}


# ---------------------------------------------------------------------------------------------------------------
# the same numbers


@every_kernels
@every_shape
def test_every_number_is_that_of_the_model_over_ops(config, kernels):
    """Logits, losses and every gradient: in float64 the same, in float32 as near to them as NumPy is."""
    model, (tokens, targets) = lively(config), batch(config)
    exact = everything(on("numpy", model, np.float64), tokens, targets)
    for name, x in twins_everything(twin_of(model, kernels, np.float64), tokens, targets).items():
        np.testing.assert_allclose(x, exact[name], rtol=0, atol=1e-12 * np.abs(exact[name]).max(), err_msg=name)
    got = twins_everything(twin_of(model, kernels), tokens, targets)
    assert_within_budget(got, exact, everything(model, tokens, targets))


@every_shape
def test_names_shapes_and_first_weights_are_those_of_the_model_over_ops(config):
    twin, model = TorchGPT(config, seed=7), GPT(config, "numpy", seed=7)
    shapes = {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    assert list(shapes.items()) == list(config.parameter_shapes().items())
    assert sum(tensor.numel() for tensor in twin.state_dict().values()) == config.num_parameters()
    for name, array in twin.params.items():
        assert np.array_equal(array, model.params[name]), name


def test_weights_are_shared_with_numpy():
    model, (tokens, _) = lively(SHAPES["llama"]), batch(SHAPES["llama"])
    twin = TorchGPT(model.config, params=model.params)
    assert all(twin.params[name] is not x and np.shares_memory(twin.params[name], x)
               for name, x in model.params.items())
    assert np.shares_memory(twin.over_ops("numpy").params["wte"], model.params["wte"])
    texts = [m.generate(tokens[:, :5], 4, temperature=0) for m in (twin, model)]
    assert np.array_equal(*texts)


def test_ropes_tables_follow_the_dtype():
    """They are made anew, so that .double() gives the tables of float64 and not those of float32 with more digits."""
    config = SHAPES["llama"]
    model, (tokens, targets) = lively(config), batch(config)
    exact = on("numpy", model, np.float64).forward(tokens, targets)
    assert abs(twin_of(model).double()(tokens, targets).item() - exact) < 1e-14
    twin = twin_of(model).to("meta").to_empty(device="cpu")
    assert torch.equal(twin.cos, twin_of(model).cos)


@pytest.mark.parametrize("name", ["gpt2", "llama grouped", "not causal"])
def test_one_folder_for_both(tmp_path, name):
    model, (tokens, targets) = lively(SHAPES[name]), batch(SHAPES[name])
    model.eos_token_id = 3
    model.save_pretrained(tmp_path / "ops")
    twin = TorchGPT.from_pretrained(tmp_path / "ops")
    twin.save_pretrained(tmp_path / "twin")
    assert_files_equal(tmp_path / "ops", tmp_path / "twin")
    again = GPT.from_pretrained(tmp_path / "twin", "numpy")
    assert again.config == twin.config == model.config and again.eos_token_id == twin.eos_token_id == 3
    assert again.forward(tokens, targets) == model.forward(tokens, targets)
    assert twin(tokens, targets).item() == pytest.approx(model.forward(tokens, targets), rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("size", [25, 11])
def test_rows_for_new_tokens_are_those_of_the_model_over_ops(name, size):
    model = lively(SHAPES[name])
    twin = twin_of(model)
    twin.resize_token_embeddings(size)
    model.resize_token_embeddings(size)
    assert twin.config == model.config
    for key, x in twin.params.items():
        np.testing.assert_allclose(x, model.params[key], rtol=0, atol=1e-6, err_msg=key)
    twin(np.zeros((1, 4), int), np.full((1, 4), size - 1)).backward()
    assert twin.wte.grad.shape == twin.wte.shape


@pytest.mark.parametrize("make", [lambda: GPT(TINY, "numpy"), lambda: TorchGPT(TINY)], ids=["ops", "twin"])
@pytest.mark.parametrize("size", [0, True, 1.5, "x", None, 10**15])
def test_a_refused_resize_leaves_the_model_as_it_was(make, size):
    model = make()
    message = "new_num_tokens is .*, must be an integer of 1 or more" if size != 10**15 else None
    with pytest.raises((ValueError, MemoryError, RuntimeError), match=message):
        model.resize_token_embeddings(size)
    assert model.config == TINY and len(model.params["wte"]) == 20


def assert_files_equal(a, b, but=()):
    assert sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir())
    for path in a.iterdir():
        assert path.name in but or path.read_bytes() == (b / path.name).read_bytes(), path.name


@pytest.mark.parametrize("given", [np.asarray, torch.as_tensor], ids=["arrays", "tensors"])
def test_ids_that_do_not_fit_are_refused(given):
    twin, fine = TorchGPT(TINY), given(np.zeros((1, 4), int))
    for tokens, targets, error, message in (
            (np.zeros((1, 17), int), None, ValueError, "tokens has T = 17, must be at most 16: block_size"),
            (np.zeros(4, int), None, ValueError, r"tokens has shape \(4,\), must be \(B, T\)"),
            (np.full((1, 4), 20), None, ValueError, r"tokens\[0, 0\] is 20, must be in 0 .. 19"),
            (np.zeros((1, 4)), None, TypeError, "tokens is float64, must be integers"),
            (fine, np.full((1, 4), -1), ValueError, r"targets\[0, 0\] is -1, must"),
            (fine, np.zeros((1, 3), int), ValueError, r"targets has shape \(1, 3\), must be that of tokens, \(1, 4\)")):
        with pytest.raises(error, match="TorchGPT.forward: " + message):
            twin(given(tokens), None if targets is None else given(targets))


def test_ids_of_any_integer_type_are_read():
    twin, (tokens, targets) = TorchGPT(TINY), batch(TINY)
    loss = twin(tokens, targets)
    for dtype in (torch.int32, torch.int64):
        assert torch.equal(twin(torch.tensor(tokens, dtype=dtype), torch.tensor(targets, dtype=dtype)), loss)
    elsewhere = TorchGPT(TINY, "torch").to("meta")
    assert elsewhere(torch.tensor(tokens)).device.type == "meta"          # they are brought to where the weights are


def test_what_the_twin_cannot_use_is_refused():
    for call, error, message in (
            (lambda: TorchGPT(TINY, "cuda"), ValueError, "kernels is 'cuda', must be minigpt or torch"),
            (lambda: TorchGPT(dict()), TypeError, "config is {}, must be a ModelConfig"),
            (lambda: TorchGPT(TINY, params={}), ValueError, "params must have the names of config.parameter_shapes")):
        with pytest.raises(error, match=message):
            call()


# ---------------------------------------------------------------------------------------------------------------
# the Trainer


def test_the_twins_loss_curve_lies_on_the_others():
    """The budget is that of `minigpt bench curves`: how far float32 takes NumPy from the float64 run, times 4."""
    losses = curves.compare(lambda line: None, names=("numpy", "torch"), n_layer=2, n_head=2, n_embd=32, block_size=32)
    shares = curves.shares(losses)
    assert "torch" in shares and max(shares.values()) <= 1, shares


def at_step(run, step, action):
    """Calls `action` while the step after `step` others is computed."""
    gradients = run.engine.gradients

    def acting(micro_batches):
        if run.state.global_step == step:
            action()
        return gradients(micro_batches)

    run.engine.gradients = acting


def run_of(folder, model=None, **arguments):
    return trainer(folder, model or TorchGPT(TINY, seed=3), **arguments)


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path):
    run_of(tmp_path / "whole").train()
    run = run_of(tmp_path / "stopped")
    at_step(run, 6, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="stopped after step 7 of 12"):
        run.train()
    run_of(tmp_path / "stopped", TorchGPT(TINY, seed=8)).train(resume_from_checkpoint=True)
    assert_files_equal(tmp_path / "whole" / "checkpoint-12", tmp_path / "stopped" / "checkpoint-12",
                       but=["trainer_state.json"])


def test_accumulation_equals_one_big_batch(tmp_path):
    log = []
    for size in (8, 2):
        run = run_of(tmp_path / str(size), per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
        run.train()
        log.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert log[0] == pytest.approx(log[1], rel=1e-5)


def test_either_engine_reads_the_others_checkpoint(tmp_path):
    """Weights and moments: the next step after either's checkpoint is the same one."""
    models = {"ops": GPT(TINY, "numpy", seed=3), "torch": TorchGPT(TINY, seed=3)}
    runs = {name: trainer(tmp_path / name, model) for name, model in models.items()}
    batches = list(runs["ops"]._micro_batches(12))
    for run in runs.values():
        run.train()
    for source in models:
        after = []
        for run in runs.values():
            run.engine.begin()
            run.engine.load(tmp_path / source / "checkpoint-12", 12)
            loss, norm = run.engine.gradients(batches)
            run.engine.step(13, 1e-3, 0.5)
            after.append((loss, norm, run.model.params))
        (loss, norm, params), (other_loss, other_norm, other_params) = after
        assert (loss, norm) == pytest.approx((other_loss, other_norm), rel=1e-5)
        for name, x in params.items():
            np.testing.assert_allclose(other_params[name], x, rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("first, second", [("ops", "torch"), ("torch", "ops")])
def test_a_run_goes_on_on_the_other_engine(tmp_path, first, second):
    """With a warning, and with the losses of a run that stayed on one, but for rounding."""
    make = {"ops": lambda: GPT(TINY, "numpy", seed=3), "torch": lambda: TorchGPT(TINY, seed=3)}
    whole = trainer(tmp_path / "whole", make[first]())
    whole.train()
    begun = trainer(tmp_path / "moved", make[first]())
    evaluate = begun.evaluate
    begun.evaluate = lambda: signal.raise_signal(signal.SIGINT) or evaluate()
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 12"):
        begun.train()
    moved = trainer(tmp_path / "moved", make[second]())
    with pytest.warns(UserWarning, match="going on from .*checkpoint-.*: engine was ops .*, is now ops "):
        moved.train(resume_from_checkpoint=True)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, moved)]
    assert len(losses[1]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_damaged_optimiser_is_named(tmp_path):
    run = run_of(tmp_path)
    run.train()
    path = tmp_path / "checkpoint-12" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="checkpoint-12/optimizer.safetensors"):
        run_of(tmp_path).train(resume_from_checkpoint=True)


def test_nan_stops_the_run(tmp_path):
    run = run_of(tmp_path)
    at_step(run, 9, lambda: run.model.wte.data.fill_(np.nan))
    with pytest.raises(FloatingPointError, match="after step 9: the loss is nan, .*checkpoint-8"):
        run.train()


def test_torch_is_not_imported_for_a_model_over_ops(tmp_path):
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
import training
training.trainer({str(tmp_path)!r}, max_steps=2, eval_strategy="no").train()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", ["bf16", "fp16", "gradient_checkpointing", "torch_compile"])
def test_what_only_the_twin_can_is_refused_to_a_model_over_ops(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is True, but GPT over ops .*; train its torch twin: .*TorchGPT"):
        trainer(tmp_path, GPT(TINY, "numpy"), **{name: True})
