"""From logits to the next token."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np


def sample(logits, rng: np.random.Generator, temperature: float = 1.0, top_k: int | None = None,
           top_p: float | None = None) -> np.ndarray:
    """Draws one token a row: logits (B, V) -> (B,). Only the top_k likeliest may come, if it is given; for temperature
    and top_p see `probabilities`. Temperature 0, or one too small for a float32, takes the likeliest.
    ValueError for logits that hold NaN or infinity, which only damaged weights give."""
    check_options(temperature, top_k, top_p)
    largest = logits.max(axis=-1)                                                                   # (B,)
    if not np.isfinite(largest).all():
        raise ValueError(f"sample: the largest logit is {largest[~np.isfinite(largest)][0]}, must be a finite number")
    if temperature < np.finfo(np.float32).tiny:
        return logits.argmax(axis=-1)
    ids = None
    if top_k is not None and top_k < logits.shape[-1]:                    # from here on V is top_k
        ids = np.sort(np.argpartition(logits, -top_k, axis=-1)[:, -top_k:], axis=-1)                # (B, V)
        logits = np.take_along_axis(logits, ids, axis=-1)                                           # (B, V)
    cumulative = probabilities(logits, temperature, top_p).cumsum(axis=-1)                          # (B, V)
    drawn = rng.random((len(logits), 1)) * cumulative[:, -1:]                                       # (B, 1)
    chosen = (cumulative > drawn).argmax(axis=-1)                         # the first token whose share reaches past it
    return chosen if ids is None else ids[np.arange(len(ids)), chosen]


def probabilities(logits, temperature: float = 1.0, top_p: float | None = None):
    """softmax(logits / temperature), and if top_p is given only over the fewest tokens that together have that
    probability (Holtzman et al. 2019, arXiv:1904.09751); tokens as likely as the last of them stay in too.
    logits (B, V) -> (B, V) in float64; temperature > 0."""
    p = np.exp((logits - logits.max(axis=-1, keepdims=True)).astype(np.float64) / temperature)      # (B, V)
    p /= p.sum(axis=-1, keepdims=True)
    if top_p is not None and top_p < 1:
        ranked = np.sort(p, axis=-1)[:, ::-1]                                                       # (B, V)
        before = ranked.cumsum(axis=-1) - ranked                          # what the likelier tokens have together
        last = np.where(before < top_p, ranked, np.inf).min(axis=-1, keepdims=True)                 # (B, 1)
        p = np.where(p < last, 0, p)
        p /= p.sum(axis=-1, keepdims=True)
    return p


def check_options(temperature, top_k, top_p):
    if not isinstance(temperature, Real) or not 0 <= temperature < np.inf:
        raise ValueError(f"sample: temperature is {temperature!r}, must be 0 or more")
    if top_k is not None and (not isinstance(top_k, Integral) or top_k < 1):
        raise ValueError(f"sample: top_k is {top_k!r}, must be an integer of 1 or more")
    if top_p is not None and (not isinstance(top_p, Real) or not 0 < top_p <= 1):
        raise ValueError(f"sample: top_p is {top_p!r}, must be above 0 and at most 1")
