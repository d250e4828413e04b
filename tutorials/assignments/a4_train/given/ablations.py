"""Trains the baseline, and arms in each of which one thing is missing; writes student/results.json and a picture.

    python -m given.ablations no_positions no_layernorm no_warmup        # in the folder of adapters.py
    python -m given.ablations --list
    python -m given.ablations baseline --seed 2        # only prints: how much another seed changes

Your functions do the work and do not know of it: an arm changes a setting, the parameters at the start, or one of the
operations in ops.py. All arms see the same batches. You need not change this file; the grader has its own.
"""

import argparse
import contextlib
import json
import math
import time
from pathlib import Path

import numpy as np
from given import corpus, ops
from student.init import init_params
from student.train import train

CONFIG = dict(vocab_size=len(corpus.LETTERS), block_size=32, n_layer=2, n_head=4, n_embd=64)
SETTINGS = dict(steps=1000, batch_size=16, learning_rate=3e-3, min_learning_rate=3e-4, warmup=50, decay_steps=1000,
                weight_decay=0.1, max_norm=1.0, beta1=0.9, beta2=0.99, eps=1e-8, evaluate_every=100)
SEED = 1
RESULTS = Path(__file__).parent.parent / "student" / "results.json"


def no_positions(settings, params):
    """The order of the letters is known from the causal mask alone."""

    def backward(dx, tokens, wte, wpe):
        return embedding_backward(dx, tokens, wte, wpe)[0], np.zeros_like(wpe)

    embedding_backward = ops.embedding_backward
    return dict(embedding_forward=lambda tokens, wte, wpe: wte[tokens], embedding_backward=backward)


def no_layernorm(settings, params):
    """Every norm hands on what it gets."""

    def forward(x, weight, bias):
        return x, np.zeros_like(x[..., 0]), np.ones_like(x[..., 0])

    def backward(dy, x, weight, mean, rstd):
        return dy, np.zeros_like(weight), np.zeros_like(weight)

    return dict(layernorm_forward=forward, layernorm_backward=backward)


def no_attention(settings, params):
    """Every token is left with its own value: nothing comes from those before it."""

    def forward(q, k, v):
        return v, np.zeros_like(v[..., 0])

    def backward(dout, q, k, v, out, lse):
        return np.zeros_like(q), np.zeros_like(k), dout

    return dict(attention_forward=forward, attention_backward=backward)


def no_small_projections(settings, params):
    """proj and down start with deviation 0.02, too."""
    for name, param in params.items():
        if name.endswith(("proj.weight", "down.weight")):
            param *= math.sqrt(2 * CONFIG["n_layer"])


def large_init(settings, params):
    """All matrices start ten times as large."""
    for param in params.values():
        if param.ndim == 2:
            param *= 10


def no_warmup(settings, params):
    """The first step has the highest learning rate."""
    settings["warmup"] = 0


def no_clipping(settings, params):
    """Gradients may be as long as they are."""
    settings["max_norm"] = math.inf


def high_learning_rate(settings, params):
    """Ten times the baseline's."""
    settings.update(learning_rate=3e-2, min_learning_rate=3e-3)


def low_learning_rate(settings, params):
    """A tenth of the baseline's."""
    settings.update(learning_rate=3e-4, min_learning_rate=3e-5)


ARMS = {arm.__name__: arm for arm in (no_positions, no_layernorm, no_attention, no_small_projections, large_init,
                                      no_warmup, no_clipping, high_learning_rate, low_learning_rate)}


def run(arm, steps=None, seed=SEED):
    """Trains one arm ("baseline" or of ARMS) for all its steps, or the first `steps` -> what train returned."""
    settings, params = dict(SETTINGS), init_params(CONFIG, seed)
    swapped = ARMS[arm](settings, params) if arm != "baseline" else None
    settings["steps"] = steps or settings["steps"]
    text, validation = corpus.load()
    with swap(swapped or {}):
        history = train(params, text, validation, CONFIG, settings, seed)
    return dict(loss=[round(float(loss), 5) for loss in history["loss"]],
                validation=[[step, round(float(loss), 5)] for step, loss in history["validation"]])


@contextlib.contextmanager
def swap(functions):
    """The operations of ops.py, with these in the place of theirs."""
    own = {name: getattr(ops, name) for name in functions}
    vars(ops).update(functions)
    try:
        yield
    finally:
        vars(ops).update(own)


def table(results):
    """For the write-up."""
    lines = ["| arm | loss at the end | of the last 100 batches | minus the baseline's |", "|---|---|---|---|"]
    baseline = results["baseline"]["validation"][-1][1]
    for arm, history in results.items():
        end, batches = history["validation"][-1][1], np.mean(history["loss"][-100:])
        lines.append(f"| {arm} | {end:.3f} | {batches:.3f} | {end - baseline:+.3f} |")
    return "\n".join(lines)


def picture(results, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for arm, history in results.items():
        axes.plot(*zip(*history["validation"], strict=True), label=arm, marker=".")
    axes.set(xlabel="step", ylabel="loss on text that was not trained on")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(prog="python -m given.ablations", description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="*", metavar="arm", help="see --list")
    parser.add_argument("--list", action="store_true", help="the arms")
    parser.add_argument("--seed", type=int, default=SEED, help="another than %(default)s: nothing is written")
    args = parser.parse_args()
    if args.list or not args.arms:
        print("\n".join(f"{arm:22}{function.__doc__}" for arm, function in ARMS.items()))
        return
    for arm in args.arms:
        if arm not in ARMS and arm != "baseline":
            parser.error(f"there is no arm {arm!r}, there are {', '.join(ARMS)}")
    arms, results, began = list(dict.fromkeys(["baseline", *args.arms])), {}, time.monotonic()
    for arm in arms:
        print(f"{arm:22}", end="", flush=True)
        results[arm] = run(arm, seed=args.seed)
        left = (time.monotonic() - began) / len(results) * (len(arms) - len(results))
        print(f"loss {results[arm]['validation'][-1][1]:.3f} at the end; {left:.0f} s left")
    print(f"\n{table(results)}\n")
    if args.seed == SEED:
        RESULTS.write_text(json.dumps(results), encoding="utf-8")
        picture(results, RESULTS.with_suffix(".png"))
        print(f"{RESULTS} and .png are written; the table belongs into student/writeup.md")


if __name__ == "__main__":
    main()
