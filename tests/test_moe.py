"""Mixtures of experts as a whole: balancing, training, generation, and expert parallelism among real processes. (Their
ops are in test_mirror.py, the model's gradients in test_model.py, the twin's in test_twin.py.)"""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_model import SHAPES, batch, lively
from training import TINY, trainer

from minigpt.config import ModelConfig
from minigpt.generate import KVCache
from minigpt.model import GPT
from minigpt.moe import balance_experts, expert_load

EXPERTS = replace(TINY, norm="rmsnorm", position="rope", activation="swiglu", bias=False, n_expert=8, expert_inner=16,
                  gate="sigmoid", router_bias=True, router_bias_rate=0.02)


def loads(folder, **arguments):
    """The load of the busiest expert over the mean one, of each layer, step by step."""
    trainer(folder, **arguments).train()
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([entry["expert_load"] for entry in entries if "expert_load" in entry])          # (steps, layers)


def with_favourites(config):
    """A model all of whose tokens look alike at first, and whose routers send them all to the first two experts."""
    model = GPT(config, "numpy", seed=3)
    model.params["wte"] += 0.05
    for name, param in model.params.items():
        if name.endswith("router.weight"):
            param[:2] += 0.1
    return model


@pytest.mark.parametrize("way", ["bias", "auxiliary loss"])
def test_balancing_balances(tmp_path, way):
    """At first two experts of 8 do everything, and the load is 4. Without balancing they stay favourites."""
    config = EXPERTS if way == "bias" else replace(EXPERTS, router_bias=False, router_aux_loss=0.1)
    runs = {name: loads(tmp_path / name, model=with_favourites(each), max_steps=80, logging_steps=1, eval_strategy="no",
                        per_device_train_batch_size=16)
            for name, each in (("with", config), ("without", replace(EXPERTS, router_bias=False)))}
    assert (runs["with"][0] > 3.5).all() and (runs["without"][0] > 3.5).all()
    last = {name: run[-10:].mean(axis=0).max() for name, run in runs.items()}                       # the worst layer's
    assert last["with"] < 1.8 and last["without"] > last["with"] + 0.4, last


def test_the_bias_moves_towards_an_even_load_by_its_rate():
    model = GPT(EXPERTS, "numpy")
    model.forward(*batch(EXPERTS))
    counts = {layer: x.copy() for layer, x in model.expert_counts.items()}
    assert all(x.sum() == 2 * 16 * 2 for x in counts.values())               # every token goes to two: none is dropped
    balance_experts(model)
    for layer, x in counts.items():
        np.testing.assert_allclose(model.params[f"{layer}.router.bias"], 0.02 * np.sign(x.mean() - x), rtol=1e-6)
    assert expert_load(model) == [x.max() / x.mean() for x in counts.values()]
    model.zero_grad()
    assert expert_load(model) == []


def test_the_bias_changes_who_computes_and_not_by_how_much():
    """With a bias so large that it decides alone, gates are still the scores: the same for every such bias."""
    model = lively(replace(EXPERTS, n_layer=1))
    tokens, _ = batch(EXPERTS)
    logits = []
    for large in (10, 1000):
        model.params["h.0.mlp.router.bias"][...] = [large, large, 0, 0, 0, 0, 0, 0]
        logits.append(model.forward(tokens))
    assert np.array_equal(*logits)


@pytest.mark.parametrize("name", ["experts", "experts, all options", "experts, gates as they are"])
def test_a_cache_changes_nothing(name):
    """Token by token as in one go: experts see one token at a time, and take the path for few rows."""
    from minigpt.ops import available
    model = lively(SHAPES[name])
    model = GPT(model.config, "cpp" if available()["cpp"] is None else "numpy", params=model.params)
    tokens, _ = batch(model.config)
    cache = KVCache(model.config, len(tokens))
    steps = [model.forward(tokens[:, t:t + 1], cache=cache) for t in range(tokens.shape[1])]
    whole = model.forward(tokens)
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_a_backend_without_experts_says_so():
    from minigpt import ops
    if ops.available()["emulated"] is not None:
        pytest.skip("no emulator")
    with pytest.raises(ValueError, match="GPT: ops is 'emulated', must be numpy or cpp"):
        GPT(ModelConfig.preset("moe-char"), "emulated")


# ---------------------------------------------------------------------------------------------------------------
# expert parallelism: two processes, on gloo

CONFIG = replace(EXPERTS, n_layer=1, n_expert=6, n_expert_shared=1)
TOKENS = (37, 20)                                # of each process


def one_process(rank, folder):
    """A layer whose experts are shared out among two processes, forward and backward; what it computes is saved."""
    import torch
    import torch.distributed as dist

    from minigpt.scale import moe
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    layer, x, dy = layer_and_data(rank)
    layer.group = dist.group.WORLD
    for part in layer.experts.values():
        part.weight = torch.nn.Parameter(part.weight.detach()[3 * rank:3 * rank + 3].clone())
    y = layer(x.requires_grad_())
    y.backward(dy)
    load = moe.balance_experts(layer)
    results = {"y": y.detach(), "dx": x.grad, "load": torch.tensor(load), "bias": layer.router.bias}
    results |= {f"d{name}": param.grad for name, param in layer.named_parameters()}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def layer_and_data(rank):
    """In float64, the same layer everywhere; each process has tokens of its own, of the first none for expert 5."""
    import torch

    from minigpt.scale import TorchGPT
    layer = TorchGPT(CONFIG, "torch", params=lively(CONFIG, np.float64).params).h[0].mlp
    generator = torch.Generator().manual_seed(rank)
    x, dy = (torch.randn(1, TOKENS[rank], CONFIG.n_embd, generator=generator, dtype=torch.float64) for _ in range(2))
    return layer, x, dy


def test_expert_parallel_equals_all_experts_in_one_process(tmp_path):
    torch = pytest.importorskip("torch")
    from minigpt.scale import moe
    context = torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2, join=False)
    for _ in range(60):
        if context.join(timeout=1):
            break
    else:
        for process in context.processes:
            process.kill()
        pytest.fail("the processes wait for each other")
    got = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    (layer, x0, dy0), (_, x1, dy1) = layer_and_data(0), layer_and_data(1)
    x, dy = torch.cat([x0, x1], dim=1).requires_grad_(), torch.cat([dy0, dy1], dim=1)
    y = layer(x)
    y.backward(dy)
    load = moe.balance_experts(layer)

    def same(a, b):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    same(torch.cat([part["y"] for part in got], dim=1), y.detach())
    same(torch.cat([part["dx"] for part in got], dim=1), x.grad)
    for name, param in layer.named_parameters():
        parts = [part[f"d{name}"] for part in got]
        same(torch.cat(parts) if name.startswith("experts.") else sum(parts), param.grad)
    for part in got:
        assert part["load"].tolist() == pytest.approx(load) and torch.equal(part["bias"], layer.router.bias)
