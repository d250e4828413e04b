"""Task 6.1: the training run."""

import numpy as np

from .step import batch, evaluate, train_step


def train(params, text, validation, config, settings, seed):
    """Trains params, in place, for settings["steps"] steps on batches from `text`, an array of tokens.

    Batches are settings["batch_size"] rows of block_size tokens, from one np.random.default_rng(seed) for all steps.
    After every settings["evaluate_every"] steps, the loss on `validation` is computed. Returns a dictionary:
        "loss"          [the loss of each step's batch, before the step, ...]
        "validation"    [[the number of steps done, the loss on `validation` then], ...]
    """
    # BEGIN SOLUTION 6.1
    rng = np.random.default_rng(seed)
    m = {name: np.zeros_like(param) for name, param in params.items()}
    v = {name: np.zeros_like(param) for name, param in params.items()}
    history = {"loss": [], "validation": []}
    for step in range(1, settings["steps"] + 1):
        inputs, targets = batch(text, settings["batch_size"], config["block_size"], rng)
        loss, _ = train_step(params, m, v, inputs, targets, step, config, settings)
        history["loss"].append(loss)
        if step % settings["evaluate_every"] == 0:
            history["validation"].append([step, evaluate(params, validation, config)])
    return history
    # END SOLUTION
