"""Generation: the cache changes nothing but the time, sampling follows the distribution it claims, and texts end,
overflow and repeat themselves as promised."""

from dataclasses import replace

import numpy as np
import pytest

from minigpt import ops
from minigpt.config import ModelConfig
from minigpt.generate import KVCache, sample, stream
from minigpt.generate.sampling import probabilities
from minigpt.model import GPT

BACKENDS = [name for name, reason in ops.available().items() if reason is None]
every_backend = pytest.mark.parametrize("backend", BACKENDS)

GPT2 = ModelConfig(vocab_size=31, block_size=16, n_layer=2, n_head=4, n_embd=32)
LLAMA = replace(GPT2, norm="rmsnorm", position="rope", activation="swiglu", bias=False, tied=False, n_kv_head=2)
every_shape = pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])


def model_of(config, backend="numpy"):
    """A model with weights large enough that what it says depends on what it has read."""
    model = GPT(config, backend)
    for param in model.params.values():
        param *= 8 if param.ndim == 2 else 1
    return model


def prompt(B, T, seed=0):
    return np.random.default_rng(seed).integers(0, GPT2.vocab_size, (B, T))


# ---------------------------------------------------------------------------------------------------------------
# the cache


@every_backend
@every_shape
@pytest.mark.parametrize("pieces", [(16,), (1,) * 16, (5, 1, 1, 7, 2), (1, 15)])
def test_cached_logits_equal_uncached(backend, config, pieces):
    """However a text comes in, the logits are as near to those of float64 as without a cache."""
    model, tokens, cache = model_of(config, backend), prompt(3, 16), KVCache(config, 3)
    ends = np.cumsum(pieces)
    cached = np.concatenate([model.forward(tokens[:, end - n:end], cache=cache)
                             for n, end in zip(pieces, ends, strict=True)], axis=1)
    assert cache.length == 16
    exact = GPT(config, "numpy", params={k: x.astype(np.float64) for k, x in model.params.items()}).forward(tokens)
    error, peer = np.abs(cached - exact).max(), np.abs(model.forward(tokens) - exact).max()
    assert error <= 4 * peer + 4 * np.finfo(np.float32).eps * np.abs(exact).max()


@every_backend
@every_shape
@pytest.mark.parametrize("B, T, new", [(1, 3, 10), (2, 1, 50), (3, 16, 40)])
def test_the_same_text_with_and_without_cache(backend, config, B, T, new):
    model = model_of(config, backend)
    options = dict(temperature=0.9, top_k=20, top_p=0.95, seed=1)
    cached = model.generate(prompt(B, T), new, **options)
    assert cached.shape == (B, T + new) and np.array_equal(cached[:, :T], prompt(B, T))
    assert np.array_equal(cached, model.generate(prompt(B, T), new, use_cache=False, **options))


def test_cache_can_be_wound_back():
    model, tokens, cache = model_of(GPT2), prompt(1, 9), KVCache(GPT2)
    model.forward(tokens, cache=cache)
    cache.length = 4
    logits = model.forward(tokens[:, 4:], cache=cache)
    np.testing.assert_allclose(logits, model.forward(tokens)[:, 4:], rtol=0, atol=1e-5)


def test_cache_is_checked():
    model, cache = model_of(GPT2), KVCache(GPT2, 2)
    with pytest.raises(ValueError, match="tokens has B = 1, must be the cache's, 2"):
        model.forward(prompt(1, 3), cache=cache)
    model.forward(prompt(2, 10), cache=cache)
    with pytest.raises(ValueError, match="T = 7, must be at most 6: block_size less the 10 in the cache"):
        model.forward(prompt(2, 7), cache=cache)
    with pytest.raises(ValueError, match="a cache was given with targets"):
        model.forward(prompt(2, 3), prompt(2, 3), cache=cache)


# ---------------------------------------------------------------------------------------------------------------
# texts


def test_greedy_takes_the_likeliest_token():
    model = model_of(GPT2)
    text = model.generate([1, 2, 3], 8, temperature=0)
    assert len(text) == 11
    for n in range(3, 11):
        assert text[n] == model.forward(np.array([text[:n]]))[0, -1].argmax()


def test_seeds():
    model = model_of(GPT2)
    a, b, c = (model.generate([1], 15, seed=seed) for seed in (5, 5, 6))
    assert a == b != c
    assert len({tuple(model.generate([1], 15)) for _ in range(4)}) > 1


def test_a_list_comes_back_as_a_list_and_tokens_are_streamed():
    model, seen = model_of(GPT2), []
    text = model.generate([1, 2], 6, seed=0, on_token=seen.append)
    assert type(text) is list and all(type(t) is int for t in text + seen) and text == [1, 2] + seen
    columns = []
    text = model.generate(prompt(2, 3), 6, seed=0, on_token=columns.append)
    assert np.array_equal(np.stack(columns, axis=1), text[:, 3:])
    assert model.generate([1, 2], 0) == [1, 2]


def test_tokens_come_one_at_a_time():
    model = model_of(GPT2)
    tokens = stream(model, prompt(1, 2), 10**9)                 # would not end if it were computed before it is asked
    assert next(tokens).shape == (1,)


def test_end_of_text():
    model = model_of(GPT2)
    free = model.generate(prompt(1, 2), 12, seed=3)[0]
    eos = int(free[6])
    first = 2 + int(np.argmax(free[2:] == eos))
    assert model.generate(free[:2].tolist(), 12, seed=3, eos_token_id=eos) == free[:first + 1].tolist()
    batch = model.generate(prompt(4, 2), 200, seed=3, eos_token_id=eos)
    ends = [int(np.argmax(row[2:] == eos)) for row in batch]
    assert len(set(ends)) > 1 and batch.shape[1] == 2 + max(ends) + 1
    for row, end in zip(batch, ends, strict=True):
        assert (row[2:][:end] != eos).all() and (row[2:][end:] == eos).all()


def test_prompt_longer_than_the_block():
    model = model_of(GPT2)
    with pytest.warns(UserWarning, match="the prompt has 20 tokens, the model can see 16: only the last ones are used"):
        text = model.generate(prompt(1, 20), 5, seed=0)
    assert np.array_equal(text[:, :20], prompt(1, 20))
    assert np.array_equal(text[:, 4:], model.generate(prompt(1, 20)[:, 4:], 5, seed=0))


@pytest.mark.parametrize("block", [1, 2, 5, 16])
def test_a_full_block_loses_its_older_half(block):
    model, text = model_of(replace(GPT2, block_size=block)), [1]
    expected = [1]
    for _ in range(40):
        if len(text) > block:
            text = text[max(1, block // 2):]
        expected.append(int(model.forward(np.array([text]))[0, -1].argmax()))
        text = [*text, expected[-1]]
    assert model.generate([1], 40, temperature=0) == expected


@pytest.mark.parametrize("arguments, message", [
    (dict(tokens=[]), r"tokens has shape \(1, 0\), must be a list of ids or \(B, T\), and not empty"),
    (dict(tokens=[99]), r"tokens\[0, 0\] is 99, must be in 0 .. 30"),
    (dict(max_new_tokens=-1), "max_new_tokens is -1, must be an integer of 0 or more"),
    (dict(max_new_tokens=1.5), "max_new_tokens is 1.5, must be an integer of 0 or more"),
    (dict(max_new_tokens="x"), "max_new_tokens is 'x', must be an integer of 0 or more"),
    (dict(max_new_tokens=0, temperature=-1), "temperature is -1, must be 0 or more"),
    (dict(temperature=None), "temperature is None, must be 0 or more"),
    (dict(seed=-1), "seed is -1, must be None or an integer of 0 or more"),
    (dict(seed="x"), "seed is 'x', must be None or an integer of 0 or more"),
    (dict(eos_token_id="x"), "eos_token_id is 'x', must be None or an integer of 0 or more"),
    (dict(top_k=1.5), "top_k is 1.5, must be an integer of 1 or more"),
    (dict(top_p="x"), "top_p is 'x', must be above 0 and at most 1"),
    (dict(temperature=-0.1), "temperature is -0.1, must be 0 or more"),
    (dict(temperature=float("nan")), "temperature is nan, must be 0 or more"),
    (dict(top_k=0), "top_k is 0, must be an integer of 1 or more"),
    (dict(top_p=0.0), "top_p is 0.0, must be above 0 and at most 1"),
    (dict(top_p=1.5), "top_p is 1.5, must be above 0 and at most 1"),
])
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        model_of(GPT2).generate(**dict(tokens=[1], max_new_tokens=3) | arguments)


@pytest.mark.parametrize("arguments, message", [
    (dict(do_sample=False), "no argument do_sample; temperature=0 is greedy"),
    (dict(zzz=1), "no argument zzz"),
    (dict(tokens="Once"), "encode the text first"),
])
def test_what_people_bring_along_is_explained(arguments, message):
    with pytest.raises(TypeError, match=message):
        model_of(GPT2).generate(**dict(tokens=[1], max_new_tokens=3) | arguments)


def test_a_loaded_model_ends_its_texts(tmp_path):
    model = model_of(GPT2)
    free = model.generate([1, 2], 12, seed=3)
    model.eos_token_id = free[6]
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path, "numpy")
    assert loaded.generate([1, 2], 12, seed=3) == free[:2 + free[2:].index(free[6]) + 1]
    assert loaded.generate([1, 2], 12, seed=3, eos_token_id=None) == free


def test_nothing_is_downloaded():
    with pytest.raises(ValueError, match="^gpt2 is not a folder here; nothing is downloaded"):
        GPT.from_pretrained("gpt2")


def test_only_causal_models_generate():
    with pytest.raises(ValueError, match="must be causal"):
        model_of(replace(GPT2, causal=False)).generate([1], 3)


# ---------------------------------------------------------------------------------------------------------------
# sampling

LOGITS = np.log(np.array([[0.05, 0.4, 0.1, 0.25, 0.2]], np.float32))


def frequencies(n=40_000, **options):
    ids = sample(np.repeat(LOGITS, n, axis=0), np.random.default_rng(0), **options)
    return np.bincount(ids, minlength=5) / n


@pytest.mark.parametrize("options, expected", [
    (dict(), [0.05, 0.4, 0.1, 0.25, 0.2]),
    (dict(temperature=0.5), np.array([25, 1600, 100, 625, 400]) / 2750),
    (dict(temperature=2.0), np.sqrt([0.05, 0.4, 0.1, 0.25, 0.2]) / np.sqrt([0.05, 0.4, 0.1, 0.25, 0.2]).sum()),
    (dict(top_k=2), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
    (dict(top_k=5), [0.05, 0.4, 0.1, 0.25, 0.2]),
    (dict(top_k=99), [0.05, 0.4, 0.1, 0.25, 0.2]),
    (dict(top_p=0.3), [0, 1, 0, 0, 0]),
    (dict(top_p=0.8), [0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85]),
    (dict(top_p=1.0), [0.05, 0.4, 0.1, 0.25, 0.2]),
    (dict(top_k=3, top_p=0.7), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),     # of the three left 0.4 / 0.85 and 0.25 / 0.85
    (dict(temperature=0), [0, 1, 0, 0, 0]),
    (dict(temperature=1e-30), [0, 1, 0, 0, 0]),
    (dict(temperature=1e-45), [0, 1, 0, 0, 0]),                           # too small for a float32,
    (dict(temperature=1e-320), [0, 1, 0, 0, 0]),                          # and nearly for a float64
    (dict(top_p=1e-300), [0, 1, 0, 0, 0]),
])
def test_sampling_follows_the_distribution(options, expected):
    """Frequencies of 40,000 draws, each within five standard deviations; what is left out never comes."""
    expected = np.asarray(expected, float)
    got = frequencies(**options)
    assert (np.abs(got - expected) <= 5 * np.sqrt(expected * (1 - expected) / 40_000)).all(), got
    if options.get("temperature", 1) > 1e-40 and "top_k" not in options:
        np.testing.assert_allclose(probabilities(LOGITS, **options)[0], expected, rtol=0, atol=1e-6)


def test_rows_are_sampled_each_by_itself():
    logits = np.full((5, 5), -50, np.float32)
    np.fill_diagonal(logits, 50)
    assert np.array_equal(sample(logits, np.random.default_rng(0), top_p=0.9), np.arange(5))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_damaged_logits_are_refused(bad, temperature):
    logits = LOGITS.copy()
    logits[0, 2] = bad
    with pytest.raises(ValueError, match=f"the largest logit is {bad}, must be a finite number"):
        sample(logits, np.random.default_rng(0), temperature)
