"""Tasks 5.1 to 5.3: a batch of text, one step of training, and the loss on a text that was not trained on."""

import numpy as np

from .model import backward, forward
from .optimizer import adamw, clip, learning_rate


def batch(tokens, batch_size, block_size, rng):
    """tokens (n,) -> inputs and targets, (batch_size, block_size) each.

    Every row of inputs is a stretch of the text from a place chosen at random (all with the same probability, by the
    generator `rng`), and targets[b, t] is the token that follows inputs[b, t] in the text. n > block_size.
    """
    # BEGIN SOLUTION 5.1
    start = rng.integers(0, len(tokens) - block_size, (batch_size, 1))                          # (B, 1)
    places = start + np.arange(block_size)                                                      # (B, T)
    return tokens[places], tokens[places + 1]
    # END SOLUTION


def train_step(params, m, v, inputs, targets, step, config, settings):
    """One step: the loss of this batch, its gradients, clipped to settings["max_norm"], the learning rate of this step,
    AdamW. Changes params, m and v in place -> the loss before the step, and the norm before clipping, two floats."""
    # BEGIN SOLUTION 5.2
    loss, saved = forward(params, inputs, targets, config)
    norm, grads = clip(backward(params, saved, config), settings["max_norm"])
    adamw(params, grads, m, v, step, learning_rate(step, settings), settings)
    return loss, norm
    # END SOLUTION


def evaluate(params, tokens, config):
    """The mean loss of predicting every token of the text but the first, a float.

    The text is cut into stretches of block_size, one after the other; the last may be shorter, and counts for as many
    predictions as it has. HINT: n tokens have n - 1 predictions.
    """
    # BEGIN SOLUTION 5.3
    total, T = 0.0, config["block_size"]
    for start in range(0, len(tokens) - 1, T):
        stretch = tokens[None, start:start + T + 1]                                             # (1, T + 1)
        loss, _ = forward(params, stretch[:, :-1], stretch[:, 1:], config)
        total += loss * (stretch.shape[1] - 1)
    return total / (len(tokens) - 1)
    # END SOLUTION
