"""Tasks 5.1 to 5.5: from logits to a token. logits and p are (V,), one number for each token, in float64."""

import numpy as np


def softmax(logits, temperature):
    """softmax(logits / temperature) -> p (V,).

    temperature 0 is its limit: all on the largest logit, the first of equal ones. Logits may be -inf (a token that must
    not come: probability 0) and as large as numbers get. Not all of them are -inf.
    """
    # BEGIN SOLUTION 5.1
    if temperature == 0:
        return np.eye(len(logits))[np.argmax(logits)]                         # (V,)
    e = np.exp((logits - logits.max()) / temperature)                         # (V,)
    return e / e.sum()
    # END SOLUTION


def top_k(p, k):
    """p (V,) -> p (V,): only the k likeliest tokens stay (of equal ones those of the smaller number), and together they
    have probability 1 again. k may be larger than V."""
    # BEGIN SOLUTION 5.2
    best = np.argsort(-p, kind="stable")[:k]                                  # (k,)
    kept = np.zeros_like(p)
    kept[best] = p[best]
    return kept / kept.sum()
    # END SOLUTION


def top_p(p, share):
    """p (V,) -> p (V,): only the fewest likeliest tokens stay that together have at least the probability `share` (of
    equal ones those of the smaller number), and together they have 1 again. There is always one. 0 < share <= 1.
    (Nucleus sampling: Holtzman et al. 2019, arXiv:1904.09751.)

    HINT: a token stays if those before it, from the likeliest down, have not reached `share` yet.
    """
    # BEGIN SOLUTION 5.3
    order = np.argsort(-p, kind="stable")                                     # (V,)
    before = np.concatenate([[0], p[order].cumsum()[:-1]])                    # (V,)
    best = order[before < share]
    kept = np.zeros_like(p)
    kept[best] = p[best]
    return kept / kept.sum()
    # END SOLUTION


def repetition_penalty(logits, previous, penalty):
    """logits (V,) -> logits (V,), in which every token of the list `previous` is less likely: its logit is divided by
    `penalty` (> 1) if it is positive, and multiplied by it if not. Once, however often it occurs.
    (Keskar et al. 2019, arXiv:1909.05858.) The argument stays as it is."""
    # BEGIN SOLUTION 5.4
    penalised, seen = logits.copy(), sorted(set(previous))
    penalised[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return penalised
    # END SOLUTION


def draw(p, u):
    """The token at which u, a uniform number in [0, 1), falls, when the tokens lie side by side on a line, each as long
    as its probability: the first whose end lies beyond u. -> int

    A token of probability 0 never comes, not for u = 0 either. Adding up rounds: for u a hair under 1 the last token
    that is possible comes, even if all the probabilities add up to a little less than u.
    """
    # BEGIN SOLUTION 5.5
    ends = p.cumsum()                                                         # (V,)
    return int(np.argmax(ends > u)) if u < ends[-1] else int(np.flatnonzero(p)[-1])
    # END SOLUTION
