"""Tasks 5.1 to 5.3: attention (Vaswani et al. 2017, arXiv:1706.03762), and the algorithm that made it fast
(FlashAttention: Dao et al. 2022, arXiv:2205.14135).

q (B, H, Tq, D), k and v (B, H, Tk, D). The *last* query stands at the *last* key: with causal=True, query i sees the
keys j <= i + Tk - Tq. Tk >= Tq, so every query sees at least one key. scale = 1 / sqrt(D).
"""

import numpy as np

TILE = 64                                 # queries and keys of a tile, in task 5.3


def attention_forward(q, k, v, causal=True):
    """out = softmax(scale q k^T) v -> out (B, H, Tq, D), lse (B, H, Tq), with lse = log(sum_j exp(scale q_i k_j)),
    over the keys that the query sees."""
    # BEGIN SOLUTION 5.1
    s = scores(q, k, causal)                                                  # (B, H, Tq, Tk)
    m = s.max(axis=-1, keepdims=True)                                         # (B, H, Tq, 1)
    p = np.exp(s - m)                                                         # (B, H, Tq, Tk)
    l = p.sum(axis=-1, keepdims=True)                                         # (B, H, Tq, 1)
    return p @ v / l, (m + np.log(l))[..., 0]
    # END SOLUTION


# BEGIN SOLUTION 5.1 NO PROMPT
def scores(q, k, causal):
    """scale q k^T, -inf where the query does not see the key: (B, H, Tq, Tk)."""
    (Tq, D), Tk = q.shape[2:], k.shape[2]
    s = q @ k.swapaxes(-1, -2) * np.asarray(D ** -0.5, q.dtype)
    if causal:
        seen = np.arange(Tk) <= np.arange(Tq)[:, None] + (Tk - Tq)            # (Tq, Tk)
        s = np.where(seen, s, np.asarray(-np.inf, q.dtype))
    return s


# END SOLUTION
def attention_backward(dout, q, k, v, out, lse, causal=True):
    """dout, q, out (B, H, Tq, D), k and v (B, H, Tk, D), lse (B, H, Tq) -> dq, dk, dv, as q, k and v.

    The probabilities were not kept; lse gives them back: p = exp(scale q k^T - lse). Then, with dp = dout v^T and
    delta_i = dout_i . out_i, the gradient of the scores is ds = p (dp - delta).
    """
    # BEGIN SOLUTION 5.2
    scale = np.asarray(q.shape[-1] ** -0.5, q.dtype)
    p = np.exp(scores(q, k, causal) - lse[..., None])                         # (B, H, Tq, Tk)
    dv = p.swapaxes(-1, -2) @ dout                                            # (B, H, Tk, D)
    dp = dout @ v.swapaxes(-1, -2)                                            # (B, H, Tq, Tk)
    delta = (dout * out).sum(axis=-1, keepdims=True)                          # (B, H, Tq, 1)
    ds = scale * p * (dp - delta)                                             # (B, H, Tq, Tk)
    return ds @ k, ds.swapaxes(-1, -2) @ q, dv
    # END SOLUTION


def attention_forward_tiled(q, k, v, causal=True):
    """The same results as attention_forward, without ever holding a row of scores, let alone all (Tq, Tk) of them.

    A tile of queries walks over the tiles of keys and keeps, for every query, the largest score so far m, the sum l of
    exp(s - m), and the output o, not yet divided by l. When a tile raises m, what was added up before is too large by
    the factor exp(m_new - m_old). Tiles that no query of the tile sees are skipped.
    """
    # BEGIN SOLUTION 5.3
    (B, H, Tq, D), Tk = q.shape, k.shape[2]
    out, lse = np.empty_like(q), np.empty((B, H, Tq), q.dtype)
    for q0 in range(0, Tq, TILE):
        tile = q[:, :, q0:q0 + TILE]                                          # (B, H, rows, D)
        rows = tile.shape[2]
        m = np.full((B, H, rows, 1), -np.inf, q.dtype)
        l = np.zeros((B, H, rows, 1), q.dtype)
        o = np.zeros((B, H, rows, D), q.dtype)
        last = q0 + rows + Tk - Tq if causal else Tk                          # keys before this one are seen
        for k0 in range(0, last, TILE):
            k1 = min(k0 + TILE, last)
            s = tile @ k[:, :, k0:k1].swapaxes(-1, -2) * np.asarray(D ** -0.5, q.dtype)
            if causal:
                seen = np.arange(k0, k1) <= np.arange(q0, q0 + rows)[:, None] + (Tk - Tq)
                s = np.where(seen, s, np.asarray(-np.inf, q.dtype))           # (B, H, rows, keys)
            m_new = np.maximum(m, s.max(axis=-1, keepdims=True))
            p = np.exp(s - m_new)
            correction = np.exp(m - m_new)
            l = l * correction + p.sum(axis=-1, keepdims=True)
            o = o * correction + p @ v[:, :, k0:k1]
            m = m_new
        out[:, :, q0:q0 + rows], lse[:, :, q0:q0 + rows] = o / l, (m + np.log(l))[..., 0]
    return out, lse
    # END SOLUTION
