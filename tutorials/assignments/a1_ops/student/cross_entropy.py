"""Tasks 4.1 and 4.2: the loss. Softmax and the negative logarithm of the target's probability, in one."""

import numpy as np


def cross_entropy_forward(logits, targets, ignore_index=-100):
    """losses[i] = lse[i] - logits[i, targets[i]], with lse[i] = log(sum_j exp(logits[i, j])).

    logits (..., V), targets (...) integers -> losses (...), lse (...). Where a target is ignore_index the loss is 0.
    HINT: exp(100) is infinite in float32, but log(sum_j exp(z_j)) = m + log(sum_j exp(z_j - m)) for any m.
    """
    # BEGIN SOLUTION 4.1
    m = logits.max(axis=-1, keepdims=True)                                    # (..., 1)
    lse = (m + np.log(np.exp(logits - m).sum(axis=-1, keepdims=True)))[..., 0]
    counted = targets != ignore_index                                         # (...)
    index = np.where(counted, targets, 0)[..., None]                          # (..., 1)
    picked = np.take_along_axis(logits, index, axis=-1)[..., 0]               # (...)
    return np.where(counted, lse - picked, np.zeros_like(lse)), lse
    # END SOLUTION


def cross_entropy_backward(dloss, logits, targets, lse, ignore_index=-100):
    """dlogits = dloss * (softmax(logits) - onehot(targets)), and 0 in rows that are ignored.

    dloss is a number, the gradient of every row's loss; logits (..., V), targets (...), lse (...), as the forward pass
    returned it -> dlogits (..., V).
    """
    # BEGIN SOLUTION 4.2
    counted = (targets != ignore_index)[..., None]                            # (..., 1)
    onehot = np.arange(logits.shape[-1]) == targets[..., None]                # (..., V)
    p = np.exp(logits - lse[..., None])                                       # (..., V)
    return np.where(counted, dloss * (p - onehot), 0).astype(logits.dtype)
    # END SOLUTION
