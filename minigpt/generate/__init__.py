"""Text from a model: sampling (sampling.py) over a cache of keys and values (cache.py).

    model.generate(tokenizer.encode("Once"), 100, temperature=0.8, top_k=50, seed=1)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Literal

import numpy as np

from .cache import KVCache
from .sampling import check_options, sample

__all__ = ["KVCache", "generate", "sample", "stream"]

# Arguments of transformers' generate that people bring along, and what to do about them here.
ELSEWHERE = {
    "do_sample": "temperature=0 is greedy, anything above it samples",
    "num_beams": "there is no beam search; temperature=0 is greedy",
    "max_length": "give max_new_tokens, which does not count the prompt",
    "input_ids": "give the ids as tokens, the first argument",
    "streamer": "on_token is called with each new token",
}


def generate(model, tokens, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None,
             top_p: float | None = None, seed: int | None = None,
             eos_token_id: int | None | Literal["model's"] = "model's",
             on_token: Callable | None = None, use_cache: bool = True, **unknown):
    """Continues `tokens`, a list of ids or an array (B, T), and returns it with the new tokens behind, as what it came:
    a list, or an array (B, T + new). The other arguments are those of `stream`, but that a text ends at the model's own
    eos_token_id unless another is given, or None: then it does not end. `on_token` is called with each new token as
    soon as it is there: an int for a list, an array (B,) otherwise."""
    for name in unknown:
        raise TypeError(f"generate: there is no argument {name}; {ELSEWHERE.get(name, 'see help(GPT.generate)')}")
    if eos_token_id == "model's":
        eos_token_id = model.eos_token_id
    batch = np.asarray(tokens)
    one = batch.ndim == 1
    columns = [batch[None] if one else batch]                                                       # (B, T)
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, eos_token_id=eos_token_id)
    for ids in stream(model, columns[0], max_new_tokens, use_cache=use_cache, **options):
        columns.append(ids[:, None])                                                                # (B, 1)
        if on_token is not None:
            on_token(int(ids[0]) if one else ids)
    result = np.concatenate(columns, axis=1)                                                        # (B, T + new)
    return result[0].tolist() if one else result


def stream(model, tokens, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None,
           top_p: float | None = None, seed: int | None = None, eos_token_id: int | None = None,
           use_cache: bool = True) -> Iterator[np.ndarray]:
    """Yields the new tokens of a batch of texts one position at a time, (B,) each, at most max_new_tokens of them.

    temperature, top_k and top_p: see `sample`. The same seed gives the same text; None gives another one every time.
    With eos_token_id a text ends when it has produced that token; it goes on yielding it until all texts have ended.

    A prompt longer than the model's block is cut to its last block_size tokens, with a warning. When the text outgrows
    the block, the model forgets the older half of it and goes on; the keys and values of the newer half are computed
    again, because every position has changed. So the cost per token stays the same however long the text becomes.
    use_cache=False computes every position again for every token; it gives the same text, slowly.
    """
    check_options(temperature, top_k, top_p)
    block, text = model.config.block_size, _checked(model.config, tokens, max_new_tokens, seed, eos_token_id)
    if text.shape[1] > block:
        warnings.warn(f"generate: the prompt has {text.shape[1]} tokens, the model can see {block}: "
                      "only the last ones are used", stacklevel=3)
        text = text[:, -block:]
    rng = np.random.default_rng(seed)
    cache = KVCache(model.config, len(text), model.dtype) if use_cache else None
    ended = np.zeros(len(text), bool)
    for _ in range(max_new_tokens):
        if text.shape[1] > block:
            text = text[:, max(1, block // 2):]
            if use_cache:
                cache.length = 0
        new = text[:, cache.length:] if use_cache else text                                         # (B, T)
        logits = model.forward(new, cache=cache, last=True)[:, 0]                                   # (B, V)
        ids = sample(logits, rng, temperature, top_k, top_p)                                        # (B,)
        if eos_token_id is not None:
            ids = np.where(ended, eos_token_id, ids)
            ended |= ids == eos_token_id
        yield ids
        if ended.all():
            return
        text = np.concatenate([text, ids[:, None]], axis=1)                                         # (B, T + 1)


def _checked(config, tokens, max_new_tokens, seed, eos_token_id):
    tokens = np.asarray(tokens)
    if tokens.dtype.kind == "U":
        raise TypeError("generate: tokens is text, must be ids: encode the text first, tokenizer.encode(text)")
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(f"generate: tokens has shape {tokens.shape}, must be a list of ids or (B, T), and not empty")
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens is {max_new_tokens!r}, must be an integer of 0 or more")
    if seed is not None and (not isinstance(seed, Integral) or seed < 0):
        raise ValueError(f"generate: seed is {seed!r}, must be None or an integer of 0 or more")
    if eos_token_id is not None and (not isinstance(eos_token_id, Integral) or eos_token_id < 0):
        raise ValueError(f"generate: eos_token_id is {eos_token_id!r}, must be None or an integer of 0 or more")
    if not config.causal:
        raise ValueError("generate: the model has causal=False, must be causal to continue a text")
    return tokens
