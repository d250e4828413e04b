"""Tasks 4.1 to 4.3: AdamW, the limit for gradients, and the learning rate."""

import math

import numpy as np


def adamw(params, grads, m, v, step, lr, settings):
    """One step of AdamW (Loshchilov, Hutter 2017, arXiv:1711.05101), in place: params, m and v are dictionaries of
    arrays that change, grads stay as they are. step counts from 1; settings has beta1, beta2, eps, weight_decay.

        m = beta1 m + (1 - beta1) g                        mhat = m / (1 - beta1^step)
        v = beta2 v + (1 - beta2) g^2                      vhat = v / (1 - beta2^step)
        param = param - lr weight_decay param - lr mhat / (sqrt(vhat) + eps)

    Only matrices decay; biases and the weights of norms do not (there weight_decay is 0).
    """
    # BEGIN SOLUTION 4.1
    beta1, beta2 = settings["beta1"], settings["beta2"]
    for name, param in params.items():
        g = grads[name]
        m[name][...] = beta1 * m[name] + (1 - beta1) * g
        v[name][...] = beta2 * v[name] + (1 - beta2) * g * g
        mhat, vhat = m[name] / (1 - beta1 ** step), v[name] / (1 - beta2 ** step)
        decay = settings["weight_decay"] if param.ndim == 2 else 0
        param[...] = param - lr * decay * param - lr * mhat / (np.sqrt(vhat) + settings["eps"])
    # END SOLUTION


def clip(grads, max_norm):
    """grads {name: array} -> their norm, a float, and the clipped gradients, a new dictionary.

    The norm is that of all gradients taken as one long vector. If it is more than max_norm, all are scaled by the same
    factor, so that it is max_norm; otherwise they stay as they are. max_norm may be infinite.
    """
    # BEGIN SOLUTION 4.2
    norm = math.sqrt(sum(float((g * g).sum()) for g in grads.values()))
    scale = min(1.0, max_norm / norm) if norm else 1.0
    return norm, {name: g * scale for name, g in grads.items()}
    # END SOLUTION


def learning_rate(step, settings):
    """The learning rate of a step, counted from 1. settings has learning_rate, min_learning_rate, warmup, decay_steps.

    It grows in a straight line to learning_rate, which it reaches at step `warmup` (0: there is no warm-up), then falls
    along half a cosine wave to min_learning_rate, which it reaches at step `decay_steps` and keeps.
    """
    # BEGIN SOLUTION 4.3
    highest, lowest = settings["learning_rate"], settings["min_learning_rate"]
    if step < settings["warmup"]:
        return highest * step / settings["warmup"]
    progress = min(1, (step - settings["warmup"]) / (settings["decay_steps"] - settings["warmup"]))
    return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * progress))
    # END SOLUTION
