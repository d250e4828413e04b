"""The model: its gradients against finite differences, everything it computes against transformers, one backend against
the other, and the promises of its docstrings.

Errors have budgets: a float32 result passes if it is at most K times as far from the float64 result as the peer's own
float32 result is, plus FLOOR roundings of the largest number in the array.
"""

import contextlib
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from minigpt import ops
from minigpt.config import ModelConfig
from minigpt.files.layouts import HEAD, PREFIX, layout, model_type, place
from minigpt.model import GPT

BACKENDS = [name for name, reason in ops.available().items() if reason is None]
K, FLOOR = 4, 4 * np.finfo(np.float32).eps

SMALL = ModelConfig(vocab_size=19, block_size=12, n_layer=2, n_head=4, n_embd=16, n_inner=24)
LLAMA = dict(norm="rmsnorm", position="rope", activation="swiglu", bias=False)
EXPERTS = dict(n_expert=6, n_expert_active=2, expert_inner=10)
LATENT = dict(LLAMA, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5)
SHAPES = {
    "gpt2": SMALL,
    "gpt2 untied": replace(SMALL, tied=False),
    "gpt2 without bias": replace(SMALL, bias=False),
    "llama": replace(SMALL, **LLAMA, tied=False),
    "llama grouped": replace(SMALL, **LLAMA, n_kv_head=2, rope_base=100.0),
    "llama one key head, bias": replace(SMALL, **LLAMA | {"bias": True}, n_kv_head=1, tied=False, norm_eps=1e-3),
    "not causal": replace(SMALL, causal=False),
    "layernorm, rope, swiglu": replace(SMALL, position="rope", activation="swiglu", n_kv_head=2),
    "rmsnorm, learned, gelu": replace(SMALL, norm="rmsnorm", causal=False, n_kv_head=1, tied=False),
    "shared layers": replace(SMALL, share_layers=True),
    "shared layers, llama": replace(SMALL, **LLAMA, share_layers=True, n_layer=3),
    "mixtral": replace(SMALL, **LLAMA, n_kv_head=2, tied=False, n_expert=4),
    "experts": replace(SMALL, **LLAMA, **EXPERTS),
    "experts, all options": replace(SMALL, **LLAMA, **EXPERTS, n_layer=3, n_dense_layers=1, n_expert_shared=2,
                                    gate="sigmoid", route_scale=2.5, router_bias=True, n_expert_group=3,
                                    n_expert_group_active=2, router_aux_loss=0.1, router_z_loss=0.1),
    "experts, gates as they are": replace(SMALL, **LLAMA, **EXPERTS, normalize_gates=False, router_aux_loss=0.1,
                                          share_layers=True),
    "latent attention": replace(SMALL, **LATENT),
    "latent attention, latent queries, bias": replace(SMALL, **LATENT | dict(bias=True, v_head_dim=10), q_lora_rank=12),
    "one layer, one head": replace(SMALL, n_layer=1, n_head=1, n_kv_head=1, n_embd=6, block_size=64),
}
every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def lively(config, dtype=np.float32, seed=0):
    """A model whose weights, unlike those of a fresh one, have all sizes, and none of which is 0."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in config.parameter_shapes().items():
        start = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        params[name] = (start + rng.normal(0, 0.3, shape)).astype(np.float32).astype(dtype)
    return GPT(config, "numpy", params=params)


def on(backend, model, dtype=np.float32):
    """The same weights on another backend or in another dtype."""
    return GPT(model.config, backend, params={name: x.astype(dtype) for name, x in model.params.items()})


def batch(config, B=2, T=None, seed=0):
    """tokens and targets (B, T), a few of them not counted."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, config.vocab_size, (2, B, T or config.block_size))
    targets[rng.random(targets.shape) < 0.1] = -100
    return tokens, targets


def everything(model, tokens, targets):
    """{name: array} of all that the model computes: logits, loss, the loss of each token, and every gradient."""
    model.zero_grad()
    results = {"logits": model.forward(tokens), "loss": np.asarray(model.forward(tokens, targets))}
    results["losses"] = model.losses.copy()
    model.backward()
    return results | {f"gradient of {name}": grad.copy() for name, grad in model.grads.items()}


def assert_within_budget(got, exact, peer):
    assert got.keys() == exact.keys()
    for name, expected in exact.items():
        error = np.abs(got[name].astype(np.float64) - expected).max()
        allowed = K * np.abs(peer[name].astype(np.float64) - expected).max() + FLOOR * np.abs(expected).max()
        assert error <= allowed, f"{name}: the error is {error:.3g}, {error / allowed:.3g} of its budget"


# ---------------------------------------------------------------------------------------------------------------
# gradients


@every_shape
def test_gradients_against_finite_differences(config):
    """Along a random direction through each parameter: (f(p + e d) - f(p - e d)) / 2e = gradient . d, in float64."""
    model = lively(config, np.float64)
    tokens, targets = batch(config)
    model.forward(tokens, targets)
    model.backward()
    rng, e = np.random.default_rng(1), 1e-5
    for name, gradient in model.grads.items():
        param = model.params[name]
        before, direction = param.copy(), rng.normal(size=param.shape)
        losses = []
        for sign in (1, -1):
            param[...] = before + sign * e * direction
            losses.append(model.forward(tokens, targets) + model.router_loss)
        param[...] = before
        numeric, exact = (losses[0] - losses[1]) / (2 * e), (gradient * direction).sum()
        assert abs(numeric - exact) <= 1e-6 * abs(exact) + 1e-8, f"{name}: {exact}, by differences {numeric}"


@every_backend
@pytest.mark.parametrize("config", [SHAPES["gpt2"], SHAPES["llama grouped"]], ids=["gpt2", "llama"])
def test_accumulation_equals_one_big_batch(backend, config):
    tokens, targets = batch(config, B=6)
    one, two = lively(config), lively(config)
    peer = everything(one, tokens, targets)
    exact = everything(on("numpy", one, np.float64), tokens, targets)
    two = on(backend, two)
    counted = int((targets != -100).sum())
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        two.forward(tokens[rows], targets[rows])
        two.backward(divisor=counted)
    got = {f"gradient of {name}": grad for name, grad in two.grads.items()}
    assert_within_budget(got, {name: exact[name] for name in got}, peer)


# ---------------------------------------------------------------------------------------------------------------
# transformers as the judge


@contextlib.contextmanager
def no_float32():
    """Inside, what transformers insists on computing in float32 (rmsnorm, the angles of rope) is computed in float64,
    so that its float64 run is one."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    assert transformers.GPT2LMHeadModel and transformers.LlamaForCausalLM         # so they are imported before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def their_everything(model, dtype, tokens, targets):
    """What `everything` gives, computed by the class of transformers that has this shape, with the same weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, kind = model.config, model_type(model.config)
    common = dict(vocab_size=config.vocab_size, tie_word_embeddings=config.tied, is_causal=config.causal)
    if kind == "gpt2":
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            n_positions=config.block_size, n_embd=config.n_embd, n_layer=config.n_layer, n_head=config.n_head,
            n_inner=config.n_inner, layer_norm_epsilon=config.norm_eps, **common))
    else:
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            max_position_embeddings=config.block_size, hidden_size=config.n_embd, num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head, num_key_value_heads=config.n_kv_head, rms_norm_eps=config.norm_eps,
            intermediate_size=config.n_inner, attention_bias=config.bias, mlp_bias=config.bias,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base}, **common))
    theirs = theirs.to(dtype).eval()
    places = {name if name == HEAD else PREFIX[kind] + name: where for name, where in layout(config, kind).items()}
    named = dict(theirs.named_parameters())
    if config.bias or kind == "llama":
        assert named.keys() == places.keys()
    with torch.no_grad():
        for name, param in named.items():
            param.copy_(torch.tensor(place(model.params, *places[name])) if name in places else 0)
    out = theirs(torch.tensor(tokens)).logits
    loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), torch.tensor(targets).flatten(), reduction="none")
    mean = loss.sum() / int((targets != -100).sum())
    mean.backward()
    results = {"logits": out, "loss": mean, "losses": loss.reshape(targets.shape)}
    results = {name: x.detach().numpy() for name, x in results.items()}
    grads = {name: np.zeros_like(x, results["logits"].dtype) for name, x in model.params.items()}
    for name, where in places.items():
        place(grads, *where)[...] = named[name].grad.numpy()
    return results | {f"gradient of {name}": grad for name, grad in grads.items()}


THEIR_SHAPES = {name: config for name, config in SHAPES.items() if model_type(config) in ("gpt2", "llama")}


def assert_equals(judge, config):
    """Logits, loss and every gradient: in float64 the same numbers as the judge's, in float32 as close to them as the
    judge is. judge(model, torch's dtype, tokens, targets) gives what everything() does."""
    torch = pytest.importorskip("torch")
    model, (tokens, targets) = lively(config), batch(config)
    with no_float32():
        exact = judge(model, torch.double, tokens, targets)
    for name, ours in everything(on("numpy", model, np.float64), tokens, targets).items():
        np.testing.assert_allclose(ours, exact[name], rtol=0, atol=1e-11 * np.abs(exact[name]).max(), err_msg=name)
    peer = judge(model, torch.float, tokens, targets)
    for backend in BACKENDS:
        assert_within_budget(everything(on(backend, model), tokens, targets), exact, peer)


@pytest.mark.parametrize("config", THEIR_SHAPES.values(), ids=THEIR_SHAPES)
def test_equals_transformers(config):
    assert_equals(their_everything, config)


# ---------------------------------------------------------------------------------------------------------------
# one backend and another


@every_backend
@every_shape
@pytest.mark.parametrize("B, T", [(1, 1), (3, 5), (2, 12)])
def test_backends_agree(backend, config, B, T):
    if config.n_expert and not hasattr(ops.load(backend), "moe_router_forward"):
        pytest.skip(f"the {backend} backend has no mixture of experts")
    model, (tokens, targets) = lively(config), batch(config, B, T)
    targets[0, 0] = 3                                                     # so that one is counted
    exact = everything(on("numpy", model, np.float64), tokens, targets)
    got = on(backend, model)
    first = everything(got, tokens, targets)
    assert_within_budget(first, exact, everything(model, tokens, targets))
    for name, x in everything(got, tokens, targets).items():
        assert np.array_equal(x, first[name]), f"{name} is not the same when computed twice"


@every_backend
def test_the_same_start_on_every_backend(backend):
    config = ModelConfig.preset("char")
    a, b = GPT(config, backend, seed=7), GPT(config, "numpy", seed=7)
    other = GPT(config, backend, seed=8)
    for name, x in a.params.items():
        assert x.dtype == np.float32 and np.array_equal(x, b.params[name]), name
        assert x.ndim == 1 or not np.array_equal(x, other.params[name]), name


def test_the_start_is_gpt2s():
    model = GPT(replace(SMALL, n_layer=8, n_embd=64, n_inner=256, vocab_size=300), "numpy")
    for name, x in model.params.items():
        if x.ndim == 1:
            assert (x == (1 if "norm" in name and name.endswith("weight") else 0)).all(), name
        else:
            std = 0.02 / 4 if name.endswith(("proj.weight", "down.weight")) else 0.02       # 4 = sqrt(2 n_layer)
            assert abs(x.std() / std - 1) < 0.1 and abs(x.mean()) < std / 10, name


# ---------------------------------------------------------------------------------------------------------------
# what the docstrings promise


@every_backend
@pytest.mark.parametrize("preset", ["char", "llama-char"])
def test_nothing_large_is_allocated_after_the_first_step(backend, preset):
    """tracemalloc sees NumPy's arrays; the smallest activation of this batch is larger than the limit."""
    if backend in ("numpy", "emulated"):
        pytest.skip({"numpy": "NumPy's expressions make arrays", "emulated": "it would take a minute"}[backend])
    config = ModelConfig.preset(preset)
    model, (tokens, targets) = GPT(config, backend), batch(config, B=12)
    small, small_targets = batch(config, B=5, T=33)

    def step():
        model.zero_grad()
        model.forward(tokens, targets)
        model.backward()
        model.forward(small, small_targets)
        model.backward()
        model.token_losses(tokens, targets)

    step()
    tracemalloc.start()
    step()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    limit = 5 * 33 * config.n_embd * 4
    assert peak - before < limit, f"{peak - before} bytes were allocated, the smallest activation has {limit}"


@every_backend
def test_logits_belong_to_the_caller(backend):
    model = on(backend, lively(SMALL))
    tokens, _ = batch(SMALL)
    first = model.forward(tokens)
    kept = first.copy()
    model.forward(tokens[:, ::-1])
    assert np.array_equal(first, kept)
    np.testing.assert_allclose(model.forward(tokens, last=True), model.forward(tokens)[:, -1:], rtol=0, atol=1e-5)


@every_backend
@pytest.mark.parametrize("causal", [True, False])
def test_who_sees_whom(backend, causal):
    model = on(backend, lively(replace(SMALL, causal=causal)))
    tokens, _ = batch(SMALL)
    logits = model.forward(tokens)
    tokens[:, 7] = (tokens[:, 7] + 1) % SMALL.vocab_size
    changed = (model.forward(tokens) != logits).any(axis=(0, 2))                                    # (T,)
    assert changed[7:].all() and changed[:7].all() == (not causal) and changed[:7].any() == (not causal)


@every_backend
def test_losses_of_single_tokens(backend):
    model, (tokens, targets) = on(backend, lively(SMALL)), batch(SMALL)
    loss = model.forward(tokens, targets)
    losses, counted = model.losses.copy(), targets != -100
    assert np.array_equal(model.token_losses(tokens, targets), losses)
    assert losses.shape == targets.shape and (losses[counted] > 0).all() and (losses[~counted] == 0).all()
    assert abs(loss - losses[counted].mean(dtype=np.float64)) < 1e-12
    logits = model.forward(tokens).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    b, t = np.argwhere(counted)[-1]
    assert abs(losses[b, t] + log_p[b, t, targets[b, t]]) < 1e-5


def test_no_target_counted_means_no_loss_and_no_gradient():
    model, (tokens, targets) = lively(SMALL), batch(SMALL)
    assert model.forward(tokens, np.full_like(targets, -100)) == 0.0
    model.backward()
    assert not any(grad.any() for grad in model.grads.values())


def test_backward_needs_a_forward_with_targets():
    model, (tokens, targets) = lively(SMALL), batch(SMALL)
    with pytest.raises(ValueError, match="no forward pass with targets"):
        model.backward()
    model.forward(tokens, targets)
    model.forward(tokens)
    with pytest.raises(ValueError, match="no forward pass with targets"):
        model.backward()
    model.forward(tokens, targets)
    model.backward()
    with pytest.raises(ValueError, match="no forward pass with targets"):
        model.backward()


@every_backend
@pytest.mark.parametrize("tokens, targets, message", [
    (np.zeros((1, 13), int), None, "T = 13, must be at most 12"),
    (np.zeros(4, int), None, r"shape \(4,\), must be \(B, T\)"),
    (np.full((1, 4), 19), None, r"tokens\[0, 0\] is 19, must be in 0 .. 18"),
    (np.full((1, 4), -1), None, r"tokens\[0, 0\] is -1, must be in 0 .. 18"),
    (np.zeros((1, 0), int), None, "tokens is empty"),
    (np.zeros((2, 4), int), np.zeros((2, 3), int), r"targets has shape \(2, 3\), must be that of tokens, \(2, 4\)"),
    (np.zeros((2, 4), int), np.full((2, 4), 19), r"targets\[0, 0\] is 19, must be in 0 .. 18"),
])
def test_bad_batches_are_refused(backend, tokens, targets, message):
    with pytest.raises(ValueError, match=message):
        GPT(SMALL, backend).forward(tokens, targets)


@every_backend
def test_tokens_must_be_integers(backend):
    with pytest.raises(TypeError, match="tokens is float64, must be integers"):
        GPT(SMALL, backend).forward(np.zeros((1, 4)))


@pytest.mark.parametrize("arguments, message", [
    (dict(config=None), "config is None, must be a ModelConfig"),
    (dict(config="gpt2"), "config is 'gpt2', must be a ModelConfig"),
    (dict(ops=5), "ops is 5, must be a backend's name or module"),
    (dict(params=[1]), r"params is \[1\], must be a dict of arrays"),
    (dict(params={"wte": 1}), "params is {'wte': 1}, must be a dict of arrays"),
])
def test_what_is_no_part_of_a_model_is_refused(arguments, message):
    with pytest.raises(TypeError, match=f"GPT: {message}"):
        GPT(**dict(config=SMALL, ops="numpy") | arguments)


def test_params_must_fit_the_config():
    params = lively(SMALL).params
    with pytest.raises(ValueError, match=r"lacks \['wpe'\]"):
        GPT(SMALL, params={name: x for name, x in params.items() if name != "wpe"})
    with pytest.raises(ValueError, match=r"params\['wpe'\] has shape \(12, 16\), must be \(13, 16\)"):
        GPT(replace(SMALL, block_size=13), params=params)
    with pytest.raises(TypeError, match="params\\['wpe'\\] is int64, must be the floating point type of wte, float32"):
        GPT(SMALL, params=params | {"wpe": np.zeros((12, 16), int)})
