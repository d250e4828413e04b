"""Muon: the iteration against the singular values it promises, a step against torch.optim.Muon, and training with it on
every engine, resumed to the same bits."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from training import TINY, assert_same_run, trainer

from minigpt import ops as backends
from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.ops import numpy_ops
from minigpt.train.muon import Muon, is_hidden, orthogonalised, rows_of_matrices

BACKENDS = [name for name in ("numpy", "cpp") if backends.available()[name] is None]
EXPERTS = replace(TINY, norm="rmsnorm", position="rope", activation="swiglu", bias=False, n_expert=4, expert_inner=16,
                  router_bias=True)
ADAM = dict(beta1=0.9, beta2=0.99, eps=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48), (1, 7), (64, 33)])
def test_singular_values_become_about_one_and_vectors_stay(backend, shape):
    """Singular values from 1 down to a hundredth of the norm come out between 0.6 and 1.3; U and V are those of x."""
    rng = np.random.default_rng(0)
    n = min(shape)
    u, _ = np.linalg.qr(rng.normal(size=(shape[0], n)))
    v, _ = np.linalg.qr(rng.normal(size=(shape[1], n)))
    x = (u * np.linspace(1, 0.1, n) @ v.T).astype(np.float32)
    result = orthogonalised(x * 1e-4, backends.load(backend)).astype(np.float64)
    inside = u.T @ result @ v                                                                       # (n, n)
    assert 0.6 < np.diag(inside).min() and np.diag(inside).max() < 1.3
    np.testing.assert_allclose(inside, np.diag(np.diag(inside)), rtol=0, atol=1e-4)
    np.testing.assert_allclose(u @ inside @ v.T, result, rtol=0, atol=1e-4)


def polynomial(x):
    """The iteration on one singular value."""
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x ** 3 + 2.0315 * x ** 5
    return x


def test_it_is_the_polynomial_of_each_singular_value():
    x = np.random.default_rng(1).normal(size=(9, 14))
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    expected = u * polynomial(s / np.linalg.norm(x)) @ vt
    np.testing.assert_allclose(orthogonalised(x, numpy_ops), expected, rtol=0, atol=1e-6)


def test_how_far_down_singular_values_count():
    """What the header of muon.py says of the polynomial."""
    ends = polynomial(np.geomspace(0.0015, 1, 10_000))
    assert 0.65 < ends.min() and ends.max() < 1.25
    assert polynomial(0.0007) < 0.5 and polynomial(1e-6) == pytest.approx(485e-6, rel=0.01)


def test_which_parameters_it_moves():
    hidden = {name for name, shape in EXPERTS.parameter_shapes().items() if is_hidden(name, len(shape))}
    parts = "attn.qkv", "attn.proj", "mlp.experts.gate", "mlp.experts.up", "mlp.experts.down"
    assert hidden == {f"h.{i}.{part}.weight" for i in range(2) for part in parts}
    assert not any(is_hidden(name, len(shape)) for name, shape in ModelConfig().parameter_shapes().items()
                   if not name.endswith("weight") or "norm" in name)


GROUPED = ModelConfig(n_embd=8, n_head=4, n_kv_head=2)
QKV = slice(0, 8), slice(8, 12), slice(12, 16)                          # rows of its packed projection


def some_steps(params, grads):
    muon = Muon(params, GROUPED, numpy_ops, 0.02, 1e-3, 0.1, **ADAM)
    for number, each in enumerate(grads, 1):
        muon.step(each, number, 5e-4, 0.5)                            # half of the highest rate, and gradients clipped
    return params


def random_arrays(shapes, seed, dtype):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.1, shape).astype(dtype) for name, shape in shapes.items()}


def test_steps_are_those_of_torch():
    """torch.optim.Muon iterates in bfloat16, so it is a judge to about 2 % of a step; our twin's is one in float64.
    Queries, keys and values, packed in one array, are three matrices to both."""
    torch = pytest.importorskip("torch")
    from minigpt.scale.muon import MuonAndAdamW
    shapes = {"h.0.attn.qkv.weight": (16, 8), "h.0.mlp.down.weight": (8, 32), "h.0.mlp.experts.up.weight": (3, 8, 12),
              "wte": (20, 8), "norm.weight": (8,)}
    start, grads = random_arrays(shapes, 0, np.float64), [random_arrays(shapes, seed, np.float64) for seed in (1, 2, 3)]
    ours = some_steps({name: x.copy() for name, x in start.items()}, grads)

    def theirs(kind, names, rows=slice(None), **options):
        params = {name: torch.nn.Parameter(torch.tensor(start[name][rows])) for name in names}
        groups = [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0, **options.pop("own", {})}
                  for p in params.values()]
        optimizer = kind(groups, **options)
        for each in grads:
            for name, p in params.items():
                p.grad = torch.tensor(0.5 * each[name][rows])
            optimizer.step()
        return {name: p.detach().numpy() for name, p in params.items()}

    for name, rows in (("h.0.mlp.down.weight", slice(8)), *(("h.0.attn.qkv.weight", part) for part in QKV)):
        judge = theirs(torch.optim.Muon, [name], rows, lr=0.01, momentum=0.95, nesterov=True, ns_steps=5)
        step = np.abs(judge[name] - start[name][rows]).max()
        np.testing.assert_allclose(ours[name][rows], judge[name], rtol=0, atol=0.05 * step, err_msg=f"{name} {rows}")
    adam = dict(lr=5e-4, betas=(0.9, 0.99), eps=1e-8)
    for name in shapes:
        hidden = is_hidden(name, len(shapes[name]))
        own = {"muon_lr_ratio": 20.0, "rows": rows_of_matrices(name, shapes[name], GROUPED)} if hidden else {}
        np.testing.assert_allclose(theirs(MuonAndAdamW, [name], own=own, **adam)[name], ours[name], rtol=0, atol=1e-12,
                                   err_msg=name)


def twin(config):
    pytest.importorskip("torch")
    from minigpt.scale import TorchGPT
    return TorchGPT(config, "torch", seed=3)


@pytest.mark.parametrize("engine", [*BACKENDS, "twin"])
@pytest.mark.parametrize("config, optim", [(TINY, "muon"), (EXPERTS, "muon"), (EXPERTS, "adamw")],
                         ids=["muon", "muon, experts", "adamw, experts"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, config, optim, engine):
    def run(folder):
        model = twin(config) if engine == "twin" else GPT(config, engine, seed=3)
        return trainer(tmp_path / folder, model, optim=optim)

    run("whole").train()
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "resumed" / f"checkpoint-{step}")
    run("resumed").train(resume_from_checkpoint=True)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


def test_one_kind_of_file_for_both_engines(tmp_path):
    """A run of the twin goes on over `ops`, with its momentum, and the other way round."""
    runs = {}
    for name, model in (("ops", GPT(EXPERTS, "numpy", seed=3)), ("twin", twin(EXPERTS))):
        runs[name] = trainer(tmp_path / name, model, optim="muon", eval_strategy="no")
        runs[name].train()
    runs["ops"].engine.load(tmp_path / "twin" / "checkpoint-12", 12)
    runs["twin"].engine.load(tmp_path / "ops" / "checkpoint-12", 12)
    assert all(run.engine.is_finite() for run in runs.values())
    weights = {name: run.model.params for name, run in runs.items()}
    for name, x in weights["ops"].items():
        assert not np.array_equal(x, np.zeros_like(x)) and np.abs(x - weights["twin"][name]).max() < 1e-3, name
