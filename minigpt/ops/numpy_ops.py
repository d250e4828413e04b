"""The specification: every operation of a GPT, forward and backward, in NumPy.

Read this file first. The other backends (cpp_ops.py, and those that follow) hold the same functions
with the same signatures, and `tests/test_mirror.py` proves that they compute the same numbers.

How to read a function:
- Any float dtype works; run in float64, it is the oracle that every other implementation is measured against.
- Shapes stand at the end of the line, wherever they are not those of the arguments. B batch, T time, C channels,
  H query heads, Hkv key heads and G = H / Hkv, D head size, V vocabulary, P positions, F width of the MLP, K and N
  inputs and outputs of linear. Ops that work row by row take any leading axes, written `...`.
- `d<name>` is the gradient of the loss with respect to `<name>`.
- Every forward op takes `out=`, arrays to write its results into; every backward op takes `grads=`, arrays to
  write the gradients into. With `accumulate=True` the gradients of *parameters* are added to what is there
  (gradient accumulation, tied weights); gradients of activations are always overwritten.
- Arrays to write into must have memory of their own, except where an op says that one may be an argument itself.
  (linear, which would quietly compute nonsense, refuses them.)
- `kernel=` chooses a rung of a ladder by name; None is the default (for NumPy, the definition).

Bad arguments raise ValueError or TypeError before any work is done (see check.py).
"""

import numpy as np

from . import check
from .bfloat16 import as_dtype
from .store import store as _store
from .store import store_grad as _store_grad

name = "numpy"

# The rungs that can be chosen with kernel=, by operation, the default last.
kernels = {
    "attention_forward": ("tiled", "definition"),
    "attention_backward": ("tiled", "definition"),
    "layernorm_forward": ("definition",),
    "layernorm_backward": ("definition",),
    "linear_forward": ("definition",),
    "linear_backward": ("definition",),
}


def _sum_rows(x):
    """Sums all axes but the last: (..., C) -> (C,)."""
    return x.reshape(-1, x.shape[-1]).sum(axis=0)


# ---------------------------------------------------------------------------------------------------------------
# embedding: a row of the token table, plus a row of the position table


def embedding_forward(tokens, wte, wpe=None, position=0, *, out=None):
    """x[b, t] = wte[tokens[b, t]] + wpe[position + t].

    tokens (B, T) integers, wte (V, C), wpe (P, C) or None -> x (B, T, C).
    `position` is the place of the first token (in a text that is continued with a cache).
    """
    check.embedding_forward(tokens, wte, wpe, position, out)
    T = tokens.shape[1]
    x = wte[tokens]                                                                             # (B, T, C)
    if wpe is not None:
        x += wpe[position:position + T]                                                         # (T, C)
    return _store(x, out)


def embedding_backward(dx, tokens, wte, wpe=None, position=0, *, grads=None, accumulate=False):
    """dx (B, T, C) -> dwte (V, C), dwpe (P, C) or None. A token that occurs twice collects two gradients."""
    check.embedding_backward(dx, tokens, wte, wpe, position, grads)
    dwte, dwpe = grads or (None, None)
    if dwte is None:
        dwte = np.zeros_like(wte)
    elif not accumulate:
        dwte[...] = 0
    np.add.at(dwte, tokens, dx)                                   # not dwte[tokens] += dx, which drops repetitions
    if wpe is None:
        return dwte, None
    if dwpe is None:
        dwpe = np.zeros_like(wpe)
    elif not accumulate:
        dwpe[...] = 0
    dwpe[position:position + tokens.shape[1]] += dx.sum(axis=0)                                 # (T, C)
    return dwte, dwpe


# ---------------------------------------------------------------------------------------------------------------
# layernorm (Ba, Kiros, Hinton 2016, arXiv:1607.06450) and rmsnorm (Zhang, Sennrich 2019, arXiv:1910.07467)


def layernorm_forward(x, weight, bias=None, eps=1e-5, *, kernel=None, out=None):
    """y = (x - mean) * rstd * weight + bias, with rstd = 1 / sqrt(variance + eps), row by row.

    x (..., C), weight (C,), bias (C,) or None -> y (..., C), mean (...), rstd (...).
    The variance is the mean of the squared distance from the mean, taken in a second pass:
    E[x^2] - E[x]^2 cancels catastrophically as soon as the mean is large.
    """
    check.layernorm_forward(x, weight, bias, eps, kernel, kernels, out)
    y, mean, rstd = out or (None, None, None)
    mu = x.mean(axis=-1, keepdims=True)                                                         # (..., 1)
    centred = x - mu                                                                            # (..., C)
    variance = (centred * centred).mean(axis=-1, keepdims=True)                                 # (..., 1)
    r = 1.0 / np.sqrt(variance + eps)                                                           # (..., 1)
    result = centred * r * weight                                                               # (..., C)
    if bias is not None:
        result = result + bias
    return _store(result, y), _store(mu[..., 0], mean), _store(r[..., 0], rstd)


def layernorm_backward(dy, x, weight, mean, rstd, *, kernel=None, grads=None, accumulate=False):
    """dy (..., C) -> dx (..., C), dweight (C,), dbias (C,).

    With xhat = (x - mean) * rstd and dxhat = dy * weight, the mean and the variance depend on every x, so
    dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)).
    grads is (dx, dweight, dbias); dbias in it may be None where there is no bias.
    """
    check.layernorm_backward(dy, x, weight, mean, rstd, kernel, kernels, grads)
    dx, dweight, dbias = grads or (None, None, None)
    xhat = (x - mean[..., None]) * rstd[..., None]                                              # (..., C)
    dxhat = dy * weight                                                                         # (..., C)
    result = rstd[..., None] * (dxhat - dxhat.mean(axis=-1, keepdims=True)
                                - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))           # (..., C)
    dweight = _store_grad(_sum_rows(dy * xhat), dweight, accumulate)                            # (C,)
    dbias = _store_grad(_sum_rows(dy), dbias, accumulate)                                       # (C,)
    return _store(result, dx), dweight, dbias


def rmsnorm_forward(x, weight, eps=1e-5, *, out=None):
    """y = x * rstd * weight, with rstd = 1 / sqrt(mean(x^2) + eps). x (..., C) -> y (..., C), rstd (...)."""
    check.rmsnorm_forward(x, weight, eps, out)
    y, rstd = out or (None, None)
    r = 1.0 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)                               # (..., 1)
    return _store(x * r * weight, y), _store(r[..., 0], rstd)


def rmsnorm_backward(dy, x, weight, rstd, *, grads=None, accumulate=False):
    """dy (..., C) -> dx (..., C), dweight (C,). As layernorm's, without the terms of the mean:
    dx = rstd * (dxhat - xhat * mean(dxhat * xhat)), with xhat = x * rstd."""
    check.rmsnorm_backward(dy, x, weight, rstd, grads)
    dx, dweight = grads or (None, None)
    xhat = x * rstd[..., None]                                                                  # (..., C)
    dxhat = dy * weight                                                                         # (..., C)
    result = rstd[..., None] * (dxhat - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))     # (..., C)
    dweight = _store_grad(_sum_rows(dy * xhat), dweight, accumulate)                            # (C,)
    return _store(result, dx), dweight


def residual_layernorm_forward(x, residual, weight, bias=None, eps=1e-5, *, out=None):
    """The end of one branch and the start of the next in a single pass: h = x + residual, y = layernorm(h).

    x, residual (..., C) -> h (..., C), y (..., C), mean (...), rstd (...).
    """
    check.residual_layernorm_forward(x, residual, weight, bias, eps, out)
    h, y, mean, rstd = out or (None, None, None, None)
    h = _store(x + residual, h)                                                                 # (..., C)
    y, mean, rstd = layernorm_forward(h, weight, bias, eps, out=out and (y, mean, rstd))
    return h, y, mean, rstd


def residual_layernorm_backward(dh, dy, h, weight, mean, rstd, *, grads=None, accumulate=False):
    """dh (..., C) reaches h along the residual stream, dy (..., C) through the layernorm
    -> dx (..., C), dweight (C,), dbias (C,). dx is the gradient of both x and residual, since h is their sum.
    `dh` itself may be the array that dx is written into."""
    check.residual_layernorm_backward(dh, dy, h, weight, mean, rstd, grads)
    dx, dweight, dbias = grads or (None, None, None)
    through_norm, dweight, dbias = layernorm_backward(
        dy, h, weight, mean, rstd, grads=grads and (np.empty_like(h), dweight, dbias), accumulate=accumulate)
    return _store(dh + through_norm, dx), dweight, dbias


# ---------------------------------------------------------------------------------------------------------------
# linear: y = x W^T + bias, with the weight stored (out, in) as in torch.nn.Linear


def linear_forward(x, weight, bias=None, *, kernel=None, out=None):
    """x (..., K), weight (N, K), bias (N,) or None -> y (..., N). 2 * rows * N * K FLOPs."""
    check.linear_forward(x, weight, bias, kernel, kernels, out)
    y = x @ weight.T                                                                            # (..., N)
    if bias is not None:
        y += bias
    return _store(y, out)


def linear_backward(dy, x, weight, *, kernel=None, grads=None, accumulate=False):
    """dy (..., N) -> dx (..., K), dweight (N, K), dbias (N,). grads is (dx, dweight, dbias); where it holds None
    for dx or dbias that gradient is not computed, and None is returned in its place."""
    check.linear_backward(dy, x, weight, kernel, kernels, grads)
    dx, dweight, dbias = grads or (None, None, None)
    dy_rows, x_rows = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])                  # (rows, N), (rows, K)
    if grads is None or dx is not None:
        dx = _store(dy @ weight, dx)                                                            # (..., K)
    dweight = _store_grad(dy_rows.T @ x_rows, dweight, accumulate)                              # (N, K)
    if grads is None or dbias is not None:
        dbias = _store_grad(dy_rows.sum(axis=0), dbias, accumulate)                             # (N,)
    return dx, dweight, dbias


def linear_gelu_forward(x, weight, bias=None, *, out=None):
    """gelu fused into linear: pre = x W^T + bias, y = gelu(pre) -> y (..., N), pre (..., N).
    `pre` is what the backward pass needs: gelu_backward, then linear_backward."""
    check.linear_gelu_forward(x, weight, bias, out)
    y, pre = out or (None, None)
    pre = linear_forward(x, weight, bias, out=pre)
    return gelu_forward(pre, out=y), pre


# ---------------------------------------------------------------------------------------------------------------
# activations

SQRT_2_OVER_PI = 0.7978845608028654
GELU_CUBIC = 0.044715


def gelu_forward(x, *, out=None):
    """The tanh form that GPT-2 uses (Hendrycks, Gimpel 2016, arXiv:1606.08415):
    y = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Any shape; `out` may be x itself."""
    check.same_shape("gelu_forward", "x", x=x, out=out)
    return _store(0.5 * x * (1.0 + np.tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x))), out)


def gelu_backward(dy, x, *, grads=None):
    """dx = dy * (0.5 (1 + tanh u) + 0.5 x (1 - tanh^2 u) du/dx), with u as in the forward pass.
    grads (one array, dx) may be dy itself."""
    check.same_shape("gelu_backward", "dy", dy=dy, x=x, grads=grads)
    t = np.tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x))
    slope = x * (1.0 - t * t)            # before it meets x^2: it is 0 far out, where x^2 may be infinite
    du_slope = SQRT_2_OVER_PI * (slope + 3.0 * GELU_CUBIC * slope * x * x)
    return _store(dy * (0.5 * (1.0 + t) + 0.5 * du_slope), grads)


def _sigmoid(x):
    """1 / (1 + e^-x), written with the exponential of a negative number only, which cannot overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def swiglu_forward(gate, up, *, out=None):
    """y = gate * sigmoid(gate) * up (Shazeer 2020, arXiv:2002.05202). gate, up (..., F) -> y (..., F)."""
    check.same_shape("swiglu_forward", gate=gate, up=up, out=out)
    return _store(gate * _sigmoid(gate) * up, out)


def swiglu_backward(dy, gate, up, *, grads=None):
    """dy (..., F) -> dgate, dup (..., F). With s = sigmoid(gate): dup = dy gate s, and
    dgate = dy up s (1 + gate (1 - s))."""
    check.swiglu_backward(dy, gate, up, grads)
    dgate, dup = grads or (None, None)
    s = _sigmoid(gate)
    dgate_result = dy * up * s * (1.0 + gate * (1.0 - s))
    return _store(dgate_result, dgate), _store(dy * gate * s, dup)


# ---------------------------------------------------------------------------------------------------------------
# rope: rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-split layout of Llama in
# transformers: channel i is paired with channel i + D/2


def rope_tables(T, D, base=10000.0, position=0, dtype=np.float32):
    """cos and sin, (T, D/2) each, of the angle (position + t) * base^(-2i/D). Not an op: made once, then kept."""
    frequency = base ** (-np.arange(0, D, 2, dtype=np.float64) / D)                             # (D/2,)
    angle = np.arange(position, position + T, dtype=np.float64)[:, None] * frequency            # (T, D/2)
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def rope_forward(x, cos, sin, *, out=None):
    """Turns each pair of channels by its angle. x (B, H, T, D), cos and sin (T, D/2) -> y (B, H, T, D).
    `out` may be x itself."""
    check.rope("rope_forward", x, cos, sin, out)
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]                                                         # (B, H, T, D/2)
    return _store(np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1), out)


def rope_backward(dy, cos, sin, *, grads=None):
    """The gradient of a rotation is the rotation back: dx = rope_forward(dy, cos, -sin). grads may be dy itself."""
    check.rope("rope_backward", dy, cos, sin, grads)
    return rope_forward(dy, cos, -sin, out=grads)


# ---------------------------------------------------------------------------------------------------------------
# attention (Vaswani et al. 2017, arXiv:1706.03762); tiled as in FlashAttention (Dao et al. 2022, arXiv:2205.14135)


def _causal_mask(Tq, Tk, q0=0, k0=0, rows=None, cols=None):
    """True where query q0 + i may see key k0 + j. The *last* query sees the *last* key (bottom-right alignment), so
    that a few new queries over a longer cache of keys see what they should: j <= i + (Tk - Tq)."""
    i = np.arange(q0, q0 + (Tq if rows is None else rows))[:, None]
    j = np.arange(k0, k0 + (Tk if cols is None else cols))[None, :]
    return j <= i + (Tk - Tq)


def attention_forward(q, k, v, causal=True, scale=None, *, kernel=None, out=None):
    """out = softmax(scale q k^T) v, and lse = log(sum(exp(scale q k^T))) for the backward pass.

    q (B, H, Tq, D), k and v (B, Hkv, Tk, D) -> out (B, H, Tq, D), lse (B, H, Tq).
    H is a multiple of Hkv: query head h reads key head h // (H / Hkv) (grouped heads). scale defaults to
    1 / sqrt(D). A row that sees no key (causal, Tq > Tk) gives 0 and lse = -inf.
    Inputs may have any strides as long as the last one is 1.
    """
    scale = check.attention_forward(q, k, v, causal, scale, kernel, kernels, out)
    if kernel == "tiled":
        return _attention_forward_tiled(q, k, v, causal, scale, out)
    (B, H, Tq, D), (Hkv, Tk) = q.shape, k.shape[1:3]
    qg = q.reshape(B, Hkv, H // Hkv, Tq, D)                                                     # heads by group
    s = scale * (qg @ k[:, :, None].swapaxes(-1, -2))                                           # (B, Hkv, G, Tq, Tk)
    if causal:
        s = np.where(_causal_mask(Tq, Tk), s, -np.inf)
    m = s.max(axis=-1, keepdims=True)                                                           # (B, Hkv, G, Tq, 1)
    m = np.where(m == -np.inf, 0, m)                              # a row that sees nothing: exp(-inf - 0) = 0
    p = np.exp(s - m)                                                                           # (B, Hkv, G, Tq, Tk)
    l = p.sum(axis=-1, keepdims=True)                                                           # (B, Hkv, G, Tq, 1)
    with np.errstate(divide="ignore"):
        lse = (m + np.log(l)).reshape(B, H, Tq)
    o = (p @ v[:, :, None] / np.where(l == 0, 1, l)).reshape(B, H, Tq, D)
    o_out, lse_out = out or (None, None)
    return _store(o, o_out), _store(lse, lse_out)


def attention_backward(dout, q, k, v, out, lse, causal=True, scale=None, *, kernel=None, grads=None):
    """dout (B, H, Tq, D) -> dq (B, H, Tq, D), dk and dv (B, Hkv, Tk, D).

    The probabilities are computed again from lse: p = exp(scale q k^T - lse). Then
    dv = p^T dout;  dp = dout v^T;  ds = scale p (dp - delta);  dq = ds k;  dk = ds^T q, with
    delta_i = sum_j p_ij dp_ij = sum_j p_ij (dout_i . v_j) = dout_i . sum_j p_ij v_j = dout_i . out_i, which takes no
    second pass over the keys. Key heads collect the gradients of all the query heads that read them.
    """
    scale = check.attention_backward(dout, q, k, v, out, lse, causal, scale, kernel, kernels, grads)
    if kernel == "tiled":
        return _attention_backward_tiled(dout, q, k, v, out, lse, causal, scale, grads)
    (B, H, Tq, D), (Hkv, Tk) = q.shape, k.shape[1:3]
    by_group = (B, Hkv, H // Hkv, Tq, D)
    qg, dog = q.reshape(by_group), dout.reshape(by_group)                                       # (B, Hkv, G, Tq, D)
    s = scale * (qg @ k[:, :, None].swapaxes(-1, -2))                                           # (B, Hkv, G, Tq, Tk)
    if causal:
        s = np.where(_causal_mask(Tq, Tk), s, -np.inf)
    lse = np.where(lse == -np.inf, 0, lse).reshape(B, Hkv, H // Hkv, Tq, 1)                     # (B, Hkv, G, Tq, 1)
    p = np.exp(s - lse)                                                                         # (B, Hkv, G, Tq, Tk)
    delta = (dout * out).sum(axis=-1).reshape(B, Hkv, H // Hkv, Tq, 1)
    dp = dog @ v[:, :, None].swapaxes(-1, -2)                                                   # (B, Hkv, G, Tq, Tk)
    ds = scale * p * (dp - delta)                                                               # (B, Hkv, G, Tq, Tk)
    dq = (ds @ k[:, :, None]).reshape(B, H, Tq, D)
    dk = (ds.swapaxes(-1, -2) @ qg).sum(axis=2)                                                 # (B, Hkv, Tk, D)
    dv = (p.swapaxes(-1, -2) @ dog).sum(axis=2)                                                 # (B, Hkv, Tk, D)
    dq_out, dk_out, dv_out = grads or (None, None, None)
    return _store(dq, dq_out), _store(dk, dk_out), _store(dv, dv_out)


BLOCK_Q, BLOCK_K = 32, 32                 # tiles of the tiled version; small, so that tests cross many boundaries


def _attention_forward_tiled(q, k, v, causal, scale, out):
    """The algorithm that the fast kernels implement: no row of scores is ever complete.

    One tile of queries walks over the tiles of keys and keeps, per query, the largest score so far m, the sum
    l of exp(s - m), and the unnormalised output o. A new tile that raises the maximum from m to m' makes
    everything before it too large by exp(m - m'), so both l and o are scaled down by that factor.
    Memory is O(T): of the T x T scores only one tile of BLOCK_Q x BLOCK_K exists at a time.
    """
    (B, H, Tq, D), (Hkv, Tk) = q.shape, k.shape[1:3]
    o_all, lse_all = out or (np.empty((B, H, Tq, D), q.dtype), np.empty((B, H, Tq), q.dtype))
    for b, h in np.ndindex(B, H):
        kh, vh = k[b, h * Hkv // H], v[b, h * Hkv // H]                                         # (Tk, D)
        for q0 in range(0, Tq, BLOCK_Q):
            qt = q[b, h, q0:q0 + BLOCK_Q]                                                       # (Bq, D)
            m = np.full((len(qt), 1), -np.inf, q.dtype)
            l = np.zeros((len(qt), 1), q.dtype)
            o = np.zeros((len(qt), D), q.dtype)
            last_key = min(Tk, q0 + len(qt) + Tk - Tq) if causal else Tk    # tiles above the diagonal are skipped
            for k0 in range(0, last_key, BLOCK_K):
                kt, vt = kh[k0:k0 + BLOCK_K], vh[k0:k0 + BLOCK_K]                               # (Bk, D)
                s = scale * (qt @ kt.T)                                                         # (Bq, Bk)
                if causal:
                    s = np.where(_causal_mask(Tq, Tk, q0, k0, len(qt), len(kt)), s, -np.inf)
                m_new = np.maximum(m, s.max(axis=-1, keepdims=True))                            # (Bq, 1)
                m_safe = np.where(m_new == -np.inf, 0, m_new)
                p = np.exp(s - m_safe)                                                          # (Bq, Bk)
                correction = np.exp(m - m_safe)                                                 # (Bq, 1)
                l = l * correction + p.sum(axis=-1, keepdims=True)
                o = o * correction + p @ vt
                m = m_new
            with np.errstate(divide="ignore"):
                lse_all[b, h, q0:q0 + BLOCK_Q] = (m + np.log(l))[:, 0]
            o_all[b, h, q0:q0 + BLOCK_Q] = o / np.where(l == 0, 1, l)
    return o_all, lse_all


def _attention_backward_tiled(dout, q, k, v, out, lse, causal, scale, grads):
    """Tile by tile as the forward pass, with p recomputed from lse. One tile of keys walks over the tiles of
    queries: its dk and dv stay at hand, and dq is added up in place."""
    (B, H, Tq), (Hkv, Tk) = q.shape[:3], k.shape[1:3]
    dq, dk, dv = grads or (np.empty(q.shape, q.dtype), np.empty(k.shape, k.dtype), np.empty(v.shape, v.dtype))
    dq[...], dk[...], dv[...] = 0, 0, 0
    for b, h in np.ndindex(B, H):
        hk = h * Hkv // H
        for k0 in range(0, Tk, BLOCK_K):
            kt, vt = k[b, hk, k0:k0 + BLOCK_K], v[b, hk, k0:k0 + BLOCK_K]                       # (Bk, D)
            first_query = max(0, k0 - (Tk - Tq)) // BLOCK_Q * BLOCK_Q if causal else 0
            for q0 in range(first_query, Tq, BLOCK_Q):
                tile = (b, h, slice(q0, q0 + BLOCK_Q))
                qt, dot = q[tile], dout[tile]                                                   # (Bq, D)
                s = scale * (qt @ kt.T)                                                         # (Bq, Bk)
                if causal:
                    s = np.where(_causal_mask(Tq, Tk, q0, k0, len(qt), len(kt)), s, -np.inf)
                row_lse = np.where(lse[tile] == -np.inf, 0, lse[tile])[:, None]                 # (Bq, 1)
                p = np.exp(s - row_lse)                                                         # (Bq, Bk)
                delta = (dot * out[tile]).sum(axis=-1, keepdims=True)                           # (Bq, 1)
                ds = scale * p * (dot @ vt.T - delta)                                           # (Bq, Bk)
                dv[b, hk, k0:k0 + BLOCK_K] += p.T @ dot                                         # (Bk, D)
                dk[b, hk, k0:k0 + BLOCK_K] += ds.T @ qt                                         # (Bk, D)
                dq[tile] += ds @ kt                                                             # (Bq, D)
    return dq, dk, dv


# ---------------------------------------------------------------------------------------------------------------
# cross-entropy: softmax and negative log-likelihood in one, never storing the probabilities


def cross_entropy_forward(logits, targets, ignore_index=-100, *, out=None):
    """losses[i] = lse[i] - logits[i, targets[i]], with lse = log(sum(exp(logits))) of the row.

    logits (..., V), targets (...) integers -> losses (...), lse (...). Where the target is ignore_index the loss is
    0. The mean over the others is the loss of the batch; it is left to the caller, who may have more batches.
    """
    check.cross_entropy_forward(logits, targets, ignore_index, out)
    losses, lse_out = out or (None, None)
    m = logits.max(axis=-1, keepdims=True)                                                      # (..., 1)
    lse = (m + np.log(np.exp(logits - m).sum(axis=-1, keepdims=True)))[..., 0]                  # (...)
    counted = targets != ignore_index
    picked = np.take_along_axis(logits, np.where(counted, targets, 0)[..., None], axis=-1)[..., 0]
    return _store(np.where(counted, lse - picked, 0), losses), _store(lse, lse_out)


def cross_entropy_backward(dloss, logits, targets, lse, ignore_index=-100, *, grads=None):
    """dlogits = dloss * (softmax(logits) - onehot(targets)), 0 in ignored rows. dloss is one number, the gradient
    of every row's loss (for a mean over n rows, 1 / n), or an array (...) with one for each row. grads (one array) may
    be logits itself."""
    check.cross_entropy_backward(dloss, logits, targets, lse, ignore_index, grads)
    if isinstance(dloss, np.ndarray):
        dloss = dloss[..., None]                                                                # (..., 1)
    counted = targets != ignore_index
    p = np.exp(logits - lse[..., None])                                                         # (..., V)
    target = np.where(counted, targets, 0)[..., None]                                           # (..., 1)
    np.put_along_axis(p, target, np.take_along_axis(p, target, axis=-1) - 1, axis=-1)
    return _store(np.where(counted[..., None], dloss * p, 0), grads)


# ---------------------------------------------------------------------------------------------------------------
# the optimiser


def adamw(param, grad, m, v, step, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, grad_scale=1.0, *,
          master=None):
    """One step of AdamW (Loshchilov, Hutter 2017, arXiv:1711.05101), in place in param, m and v. All of one shape.

    step counts from 1. grad is multiplied by grad_scale first (clipping by the global norm).
    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
    param = param (1 - lr weight_decay) - lr mhat / (sqrt(vhat) + eps),
    with mhat = m / (1 - beta1^step) and vhat = v / (1 - beta2^step).
    Parameters of few digits, which small steps would not move, may have `master` weights of the dtype of m and v,
    float32 as a rule: these take the step, and param becomes what they are, rounded.
    """
    check.adamw(param, grad, m, v, step, master, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
                grad_scale=grad_scale)
    weights = param if master is None else master
    g = as_dtype(grad, weights.dtype) * grad_scale
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    mhat = m / (1 - beta1 ** step)
    vhat = v / (1 - beta2 ** step)
    weights[...] = weights * (1 - lr * weight_decay) - lr * mhat / (np.sqrt(vhat) + eps)
    if master is not None:
        param[...] = as_dtype(master, param.dtype)


def squared_norm(x):
    """The sum of the squares of x's elements, added up in float64: a Python float."""
    check.squared_norm(x)
    flat = x.reshape(-1).astype(np.float64)
    return float(flat @ flat)


# ---------------------------------------------------------------------------------------------------------------
# mixture of experts: a file of its own

from .numpy_moe import *  # noqa: E402, F403 (the last of the ops, as in every backend)
