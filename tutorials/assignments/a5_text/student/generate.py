"""Tasks 7.1 and 7.2: text from a model, token by token, and several tokens at a time.

All chance comes from outside, as uniform numbers u in [0, 1), each for one decision: so results can be checked exactly.
"""

import numpy as np

from .sampling import draw, softmax


def generate(model, prompt, uniforms, temperature, end):
    """Continues the list of tokens `prompt` by one token for each of `uniforms`, or up to and with the token `end` if
    that comes before -> the list of the new tokens.

    model(tokens, past) -> logits (V,) of the token that follows, and the new past, as that of cache.attend. `past` is
    None at first; afterwards the model must be given only tokens that it has not seen yet. Nor should it be asked for
    logits that nobody needs. Each token is softmax(logits, temperature) drawn with its u.
    """
    # BEGIN SOLUTION 7.1
    new, fresh, past = [], list(prompt), None
    for u in uniforms:
        logits, past = model(fresh, past)
        fresh = [draw(softmax(logits, temperature), u)]
        new += fresh
        if fresh == [end]:
            break
    return new
    # END SOLUTION


def speculative(p, q, drafted, u):
    """One round of speculative decoding (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318).

    A small model has drafted n tokens, `drafted`, drawing token i from q[i]; q (n, V). The large model has looked at
    all of them at once: p (n + 1, V) are its probabilities at each place, and behind the last. u (n + 1,) uniform
    numbers. Returns the list of tokens to keep, 1 to n + 1 of them, as if each had been drawn from p:

    Draft i, with token x, is accepted if u[i] < p[i, x] / q[i, x]. At the first that is not, one token is drawn, with
    u[n], from the probabilities in which p[i] exceeds q[i]: max(p[i] - q[i], 0), made to add up to 1; then the round
    ends. If all are accepted, one more token is drawn from p[n], with u[n].
    """
    # BEGIN SOLUTION 7.2
    kept = []
    for i, x in enumerate(drafted):
        if u[i] * q[i, x] >= p[i, x]:
            missing = np.maximum(p[i] - q[i], 0)                              # (V,)
            return [*kept, draw(missing / missing.sum(), u[-1])]
        kept.append(int(x))
    return [*kept, draw(p[-1], u[-1])]
    # END SOLUTION
