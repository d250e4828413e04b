"""The learning rate at every step: a warm-up from 0, then one of a few curves.

Each function gives the share of the highest learning rate that step `step` (counted from 0) uses, as in transformers.
"""

import math


def constant(progress, min_share):
    return 1.0


def linear(progress, min_share):
    return 1.0 - progress


def cosine(progress, min_share):
    """Half a wave, from 1 down to min_share (Loshchilov, Hutter 2016, arXiv:1608.03983)."""
    return min_share + (1.0 - min_share) * 0.5 * (1.0 + math.cos(math.pi * progress))


# By lr_scheduler_type: the curve over progress 0 .. 1 after the warm-up.
SCHEDULES = {
    "linear": linear,
    "cosine": cosine,
    "cosine_with_min_lr": cosine,
    "constant": constant,
    "constant_with_warmup": constant,
}


def learning_rate(args, step, total_steps):
    """The learning rate of the step after `step` others, of `total_steps` in all."""
    warmup = args.warmup_steps if args.warmup_steps >= 1 else math.ceil(args.warmup_steps * total_steps)
    if step < warmup:
        return args.learning_rate * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    min_share = (args.lr_scheduler_kwargs or {}).get("min_lr", 0.0) / args.learning_rate
    return args.learning_rate * SCHEDULES[args.lr_scheduler_type](progress, min_share)
