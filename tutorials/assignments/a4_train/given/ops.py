"""The operations of a GPT, forward and backward: those of A1, for any float dtype. You need not change them.

Call them as ops.name(...), with `from given import ops`: the ablations swap one for another. B batch, T time,
C channels, H heads, D head size, V vocabulary, K and N inputs and outputs of linear.
"""

import math

import numpy as np


def embedding_forward(tokens, wte, wpe):
    """tokens (B, T), wte (V, C), wpe (P, C) -> x (B, T, C)."""
    return wte[tokens] + wpe[:tokens.shape[1]]


def embedding_backward(dx, tokens, wte, wpe):
    """dx (B, T, C) -> dwte (V, C), dwpe (P, C)."""
    dwte, dwpe = np.zeros_like(wte), np.zeros_like(wpe)
    np.add.at(dwte, tokens, dx)                                               # a token that occurs twice collects twice
    dwpe[:tokens.shape[1]] = dx.sum(axis=0)
    return dwte, dwpe


def layernorm_forward(x, weight, bias, eps=1e-5):
    """x (B, T, C), weight and bias (C,) -> y (B, T, C), mean (B, T), rstd (B, T)."""
    mean = x.mean(axis=-1, keepdims=True)                                     # (B, T, 1)
    centred = x - mean
    rstd = 1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
    return centred * rstd * weight + bias, mean[..., 0], rstd[..., 0]


def layernorm_backward(dy, x, weight, mean, rstd):
    """dy (B, T, C) -> dx (B, T, C), dweight (C,), dbias (C,)."""
    xhat = (x - mean[..., None]) * rstd[..., None]                            # (B, T, C)
    dxhat = dy * weight                                                       # (B, T, C)
    dx = rstd[..., None] * (dxhat - dxhat.mean(axis=-1, keepdims=True)
                            - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))
    return dx, (dy * xhat).sum(axis=(0, 1)), dy.sum(axis=(0, 1))


def linear_forward(x, weight, bias=None):
    """x (B, T, K), weight (N, K), bias (N,) or None -> y (B, T, N)."""
    y = x @ weight.T
    return y if bias is None else y + bias


def linear_backward(dy, x, weight):
    """dy (B, T, N), x (B, T, K) -> dx (B, T, K), dweight (N, K), dbias (N,)."""
    dy_rows, x_rows = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    return dy @ weight, dy_rows.T @ x_rows, dy_rows.sum(axis=0)


def gelu_forward(x):
    """x -> y of the same shape, by GPT-2's formula with tanh."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def gelu_backward(dy, x):
    """dy, x -> dx, all of one shape."""
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x))


def attention_forward(q, k, v):
    """Causal. q, k, v (B, H, T, D) -> out (B, H, T, D), lse (B, H, T)."""
    s = _scores(q, k)                                                         # (B, H, T, T)
    m = s.max(axis=-1, keepdims=True)                                         # (B, H, T, 1)
    p = np.exp(s - m)
    l = p.sum(axis=-1, keepdims=True)                                         # (B, H, T, 1)
    return p @ v / l, (m + np.log(l))[..., 0]


def attention_backward(dout, q, k, v, out, lse):
    """dout (B, H, T, D) -> dq, dk, dv (B, H, T, D)."""
    p = np.exp(_scores(q, k) - lse[..., None])                                # (B, H, T, T)
    delta = (dout * out).sum(axis=-1, keepdims=True)                          # (B, H, T, 1)
    ds = p * (dout @ v.swapaxes(-1, -2) - delta) * q.shape[-1] ** -0.5        # (B, H, T, T)
    return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dout


def _scores(q, k):
    s = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5                          # (B, H, T, T)
    return np.where(np.tri(s.shape[-1], dtype=bool), s, np.asarray(-np.inf, s.dtype))


def cross_entropy_forward(logits, targets):
    """logits (B, T, V), targets (B, T) -> losses (B, T), lse (B, T). The loss is 0 where the target is -100."""
    m = logits.max(axis=-1, keepdims=True)
    lse = (m + np.log(np.exp(logits - m).sum(axis=-1, keepdims=True)))[..., 0]
    picked = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return np.where(targets == -100, 0, lse - picked), lse


def cross_entropy_backward(dloss, logits, targets, lse):
    """dlogits (B, T, V) of dloss, one number, times the sum of all losses."""
    p = np.exp(logits - lse[..., None])                                       # (B, T, V)
    target = np.maximum(targets, 0)[..., None]                                # (B, T, 1)
    np.put_along_axis(p, target, np.take_along_axis(p, target, axis=-1) - 1, axis=-1)
    return np.where((targets == -100)[..., None], 0, dloss * p)
