"""The project's signature: one GPT, one seed, every backend, and loss curves that lie on top of each other.

    minigpt bench curves         trains nanoGPT's CPU setting for 50 steps on NumPy and on C++, and draws both

How near is near enough? The same run in float64 is the exact curve. What float32 costs the NumPy version, at its worst
step so far, is the measure; a backend may be BUDGET times as far off, or FLOOR (a few roundings of the loss itself).
"""

import importlib.util
import os
import tempfile
from pathlib import Path

import numpy as np

from .. import ops as backends
from ..config import ModelConfig
from ..files.atomic import atomic_write
from ..model import GPT
from ..text import CharTokenizer, TextDataset, default_corpus
from ..train import Trainer, TrainingArguments

STEPS, BUDGET, FLOOR = 50, 4, 1e-6
PICTURE = Path(__file__).parent / "results" / "curves.png"


def curve(config, dataset, ops, dtype=np.float32, steps=STEPS):
    """The loss of each step, (steps,), of a run from seed 0, of the GPT over `ops`, or ("torch") of its torch twin."""
    params = {name: param.astype(dtype) for name, param in GPT(config, "numpy", seed=0).params.items()}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=os.path.join(folder, "run"), max_steps=steps, warmup_steps=5,
                                      per_device_train_batch_size=12, learning_rate=1e-3, lr_scheduler_type="cosine",
                                      logging_steps=1, save_strategy="no", disable_tqdm=True)
        if ops == "torch":
            from ..scale import TorchGPT
            model = TorchGPT(config, params=params)
        else:
            model = GPT(config, ops, params=params)
        trainer = Trainer(model, arguments, train_dataset=dataset)
        trainer.train()
    return np.array([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def compare(progress, steps=STEPS, names=("numpy", "cpp", "cuda"), **shape):
    """{"exact": losses in float64, name: losses in float32, ...} for those of the backends that load here. The model is
    the preset char, but for the fields given as `shape`. (The emulator would take hours for it; tests give it less.)"""
    text = default_corpus()
    tokenizer = CharTokenizer.train(text)
    config = ModelConfig.preset("char", vocab_size=tokenizer.vocab_size, **shape)
    dataset = TextDataset.from_tokens(tokenizer.encode(text), config.block_size + 1)
    progress("numpy in float64, the exact curve")
    curves = {"exact": curve(config, dataset, "numpy", np.float64, steps)}
    for name in names:
        if importlib.util.find_spec("torch") if name == "torch" else backends.why_not(name) is None:
            progress(f"{name} in float32")
            curves[name] = curve(config, dataset, name, steps=steps)
    return curves


def allowed(curves):
    """The error budget of each step, (steps,)."""
    return BUDGET * np.maximum.accumulate(np.abs(curves["numpy"] - curves["exact"])) + FLOOR


def shares(curves):
    """{backend: the largest share of the budget that it used at any step}; over 1 is a failure."""
    return {name: float(np.max(np.abs(losses - curves["exact"]) / allowed(curves)))
            for name, losses in curves.items() if name != "exact"}


def draw(curves, path):
    """Losses above, distances from the exact curve below. Returns False where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4.6), dpi=130, layout="constrained")
    losses, errors = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = np.arange(1, len(curves["exact"]) + 1)
    for number, (name, values) in enumerate((name, values) for name, values in curves.items() if name != "exact"):
        losses.plot(steps, values, f"C{number}", linewidth=5 - 3.4 * number, alpha=1 if number else 0.4,
                    label=f"{name}, loss {values[-1]:.6f} at the end")
        errors.semilogy(steps, np.abs(values - curves["exact"]) + 1e-12, f"C{number}", linewidth=1.2)
    errors.semilogy(steps, allowed(curves), "0.5", linestyle="--", linewidth=1, label="the error budget")
    losses.set_ylabel("loss (nats per character)")
    errors.set(xlabel="step", ylabel="distance\nfrom float64", ylim=(1e-9, None))
    for axes in (losses, errors):
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
    return True


def run(progress):
    """The command: prints what was found, draws the picture, and returns 1 if a backend left its budget."""
    curves = compare(progress)
    used = shares(curves)
    for name, share in used.items():
        print(f"{name:6} loss {curves[name][0]:.6f} -> {curves[name][-1]:.6f} in {len(curves[name])} steps, "
              f"{100 * share:.0f} % of the error budget")
    if draw(curves, PICTURE):
        print(f"wrote {PICTURE}")
    return int(max(used.values()) > 1)
