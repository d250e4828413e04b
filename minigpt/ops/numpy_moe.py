"""The specification, continued: mixture of experts (Shazeer et al. 2017, arXiv:1701.06538), forward and backward.

A router sends every token to k of E experts, each an MLP of its own, and adds up what they return, weighted by gates.
No expert has a capacity, so no token is dropped: tokens are sorted by expert, and each expert works on its segment.

    logits = linear(x)  ->  router: experts, gates  ->  dispatch: rows, sorted by expert
    rows  ->  grouped_linear, swiglu, grouped_linear  ->  combine: y = the sum of gate * row

These functions are part of numpy_ops.py, which imports them, and follow its conventions; they stand here because they
are read together, after everything else. N tokens, E experts, k of them active, C channels, F width of an expert, and
R = N k rows: a copy of every token for each of its experts. In `out=` the arrays may be None one by one.
"""

import numpy as np

from . import check_moe as check
from .store import store, store_grad

__all__ = ["moe_router_forward", "moe_router_backward", "router_losses_forward", "router_losses_backward",
           "moe_dispatch_forward", "moe_dispatch_backward", "grouped_linear_forward", "grouped_linear_backward",
           "moe_combine_forward", "moe_combine_backward"]

SMALL = 1e-20                             # added to the sum of gates, which may be 0 where sigmoids underflow


def _scores(logits, gate):
    """softmax over the experts, or the sigmoid of each."""
    if gate == "sigmoid":
        e = np.exp(-np.abs(logits))                                # of a negative number only: cannot overflow
        return np.where(logits >= 0, 1.0, e) / (1.0 + e)                                        # (N, E)
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))                                     # (N, E)
    return e / e.sum(axis=-1, keepdims=True)                                                    # (N, E)


def _best(scores, k):
    """The indices of the k largest of each row, the largest first; of equal ones the first, NaN last."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def _of_best_groups(choice, groups, active_groups):
    """Scores of the experts outside a token's best groups become -inf; a group is as good as its two best experts."""
    by_group = choice.reshape(len(choice), groups, -1)                                          # (N, groups, E/groups)
    two_best = np.take_along_axis(by_group, _best(by_group, 2), axis=-1).sum(axis=-1)           # (N, groups)
    outside = np.ones_like(two_best, dtype=bool)
    np.put_along_axis(outside, _best(two_best, active_groups), False, axis=-1)                  # (N, groups)
    return np.where(outside[..., None], -np.inf, by_group).reshape(choice.shape)                # (N, E)


def moe_router_forward(logits, k, bias=None, gate="softmax", normalize=True, scale=1.0, groups=1, active_groups=1, *,
                       out=None):
    """Chooses k experts for every token. logits (N, E), bias (E,) or None -> gates (N, k), experts (N, k) int64.

    The scores are softmax(logits) or sigmoid(logits). The k best scores choose, after `bias` is added to them; the gate
    is the score without it (DeepSeek-V3, arXiv:2412.19437, eq. 16), so that a bias can balance the load of the experts
    without touching what they compute. `normalize` divides the gates of a token by their sum; then they are multiplied
    by `scale`. With groups > 1 a token chooses active_groups groups of neighbouring experts first, and its experts from
    these. Of experts with equal scores the first is taken.
    """
    check.moe_router_forward(logits, k, bias, gate, scale, groups, active_groups, out)
    gates_out, experts_out = out or (None, None)
    s = _scores(logits, gate)                                                                   # (N, E)
    choice = s if bias is None else s + bias                                                    # (N, E)
    if groups > 1:
        choice = _of_best_groups(choice, groups, active_groups)
    experts = _best(choice, k)                                                                  # (N, k)
    gates = np.take_along_axis(s, experts, axis=-1)                                             # (N, k)
    if normalize:
        gates = gates / (gates.sum(axis=-1, keepdims=True) + SMALL)
    return store(scale * gates, gates_out), store(experts, experts_out)


def moe_router_backward(dgates, logits, experts, gate="softmax", normalize=True, scale=1.0, *, grads=None):
    """dgates (N, k) -> dlogits (N, E). The choice of experts is piecewise constant and has no gradient.

    g = s of the chosen, or with `normalize` s / sum(s), whose gradient is that of a sum of shares: dg loses its mean,
    weighted by g. Then back through the scores. Softmax would spread sum(g dg) over all logits; with `normalize` that
    sum is 0, as the gates are then the softmax of the chosen logits alone.
    """
    check.moe_router_backward(dgates, logits, experts, gate, scale, grads)
    s = _scores(logits, gate)                                                                   # (N, E)
    chosen = np.take_along_axis(s, experts, axis=-1)                                            # (N, k)
    g, dg = chosen, scale * dgates                                                              # (N, k)
    if normalize:
        g = chosen / (chosen.sum(axis=-1, keepdims=True) + SMALL)
        dg = dg - (g * dg).sum(axis=-1, keepdims=True)
    dchosen = g * dg * (1.0 - chosen) if gate == "sigmoid" else g * dg                          # (N, k)
    dlogits = np.zeros_like(s)
    np.put_along_axis(dlogits, experts, dchosen, axis=-1)                                       # (N, E)
    if gate == "softmax" and not normalize:
        dlogits -= s * (g * dg).sum(axis=-1, keepdims=True)
    return store(dlogits, grads)


def _shares(logits, experts, gate):
    """p (N, E): a token's scores, as shares of 1; f (E,): the share of all choices that fell on each expert."""
    s = _scores(logits, gate)
    f = np.bincount(experts.reshape(-1), minlength=logits.shape[1]) / experts.size
    return s / s.sum(axis=-1, keepdims=True), f.astype(logits.dtype)


def _log_sum_exp(logits):
    m = logits.max(axis=-1, keepdims=True)                                                      # (N, 1)
    return m + np.log(np.exp(logits - m).sum(axis=-1, keepdims=True))                           # (N, 1)


def router_losses_forward(logits, experts, gate="softmax"):
    """Two numbers that training may add to the loss. logits (N, E), experts (N, k) -> balance (), z ().

    balance = E sum_e f_e mean_n(p_ne), with f the share of choices that fell on an expert and p the scores, as shares
    of 1 (Switch Transformer, arXiv:2101.03961, eq. 4): 1 when all experts are used alike, E when one does everything.
    z = mean_n(log(sum_e exp(logits))^2) keeps the logits small (ST-MoE, arXiv:2202.08906, eq. 5).
    """
    check.router_losses_forward(logits, experts, gate)
    p, f = _shares(logits, experts, gate)                                                       # (N, E), (E,)
    balance = logits.shape[1] * (f * p.mean(axis=0)).sum()
    return balance, np.square(_log_sum_exp(logits)).mean()


def router_losses_backward(dbalance, dz, logits, experts, gate="softmax", *, grads=None):
    """dbalance, dz numbers -> dlogits (N, E). f counts choices and has no gradient."""
    check.router_losses_backward(dbalance, dz, logits, experts, gate, grads)
    N, E = logits.shape
    p, f = _shares(logits, experts, gate)                                                       # (N, E), (E,)
    dp = dbalance * E * f / N                                                                   # (E,)
    dbalance_dlogits = p * (dp - (p * dp).sum(axis=-1, keepdims=True))                          # (N, E)
    if gate == "sigmoid":
        dbalance_dlogits = dbalance_dlogits * (1.0 - _scores(logits, gate))
    lse = _log_sum_exp(logits)                                                                  # (N, 1)
    return store(dbalance_dlogits + dz * 2 * lse / N * np.exp(logits - lse), grads)


def moe_dispatch_forward(x, experts, n_expert, *, out=None):
    """Lays the tokens out expert by expert. x (N, C), experts (N, k) -> rows (R, C), place (N, k), offsets (E + 1,).

    Row place[n, j] is a copy of token n for its j-th expert; the rows offsets[e] .. offsets[e + 1] - 1 are those of
    expert e, in the order of the tokens.
    """
    check.moe_dispatch_forward(x, experts, n_expert, out)
    rows_out, place_out, offsets_out = out or (None, None, None)
    N, k = experts.shape
    order = np.argsort(experts, axis=None, kind="stable")                                       # (R,): choices n k + j
    place = np.empty(N * k, np.int64)
    place[order] = np.arange(N * k)                                                             # its inverse
    offsets = np.concatenate([[0], np.cumsum(np.bincount(experts.reshape(-1), minlength=n_expert))])
    return store(x[order // k], rows_out), store(place.reshape(N, k), place_out), store(offsets, offsets_out)


def moe_dispatch_backward(drows, place, *, grads=None):
    """drows (R, C), place (N, k) -> dx (N, C): a token collects the gradients of its copies."""
    check.moe_dispatch_backward(drows, place, grads)
    return store(drows[place].sum(axis=1), grads)                                               # (N, k, C) -> (N, C)


def grouped_linear_forward(x, weight, offsets, *, out=None):
    """linear without a bias, with a weight for every segment of rows: y[r] = weight[e] x[r] for the rows r of expert e.
    x (R, C), weight (E, F, C), offsets (E + 1,) -> y (R, F). 2 R F C FLOPs, however many experts there are."""
    check.grouped_linear_forward(x, weight, offsets, out)
    y = np.empty((len(x), weight.shape[1]), x.dtype) if out is None else out
    for e, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        y[start:stop] = x[start:stop] @ weight[e].T                                             # (rows of e, F)
    return y


def grouped_linear_backward(dy, x, weight, offsets, *, grads=None, accumulate=False):
    """dy (R, F) -> dx (R, C), dweight (E, F, C). The weight of an expert without rows has gradient 0."""
    check.grouped_linear_backward(dy, x, weight, offsets, grads)
    dx, dweight = grads or (None, None)
    dx = np.empty_like(x) if dx is None else dx
    accumulate = accumulate and dweight is not None
    dweight = np.empty_like(weight) if dweight is None else dweight
    for e, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        dx[start:stop] = dy[start:stop] @ weight[e]                                             # (rows of e, C)
        store_grad(dy[start:stop].T @ x[start:stop], dweight[e], accumulate)                    # (F, C)
    return dx, dweight


def moe_combine_forward(rows, gates, place, *, out=None):
    """y[n] = sum_j gates[n, j] rows[place[n, j]]. rows (R, C), gates and place (N, k) -> y (N, C)."""
    check.moe_combine_forward(rows, gates, place, out)
    return store((gates[..., None] * rows[place]).sum(axis=1), out)                             # (N, k, C) -> (N, C)


def moe_combine_backward(dy, rows, gates, place, *, grads=None):
    """dy (N, C) -> drows (R, C), dgates (N, k): every row lies in one place of one token."""
    check.moe_combine_backward(dy, rows, gates, place, grads)
    drows_out, dgates_out = grads or (None, None)
    drows = np.empty_like(rows) if drows_out is None else drows_out
    drows[place] = gates[..., None] * dy[:, None]                                               # (N, k, C)
    return drows, store((rows[place] * dy[:, None]).sum(axis=-1), dgates_out)                   # (N, k)
