"""A training run small enough for tests: what test_train.py and test_resume.py share."""

import json
from pathlib import Path

import numpy as np

from minigpt import ops as backends
from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.text import TextDataset
from minigpt.train import Trainer, TrainingArguments

TINY = ModelConfig(vocab_size=20, block_size=16, n_layer=2, n_head=2, n_embd=16)
BACKENDS = [name for name, reason in backends.available().items() if reason is None and name != "emulated"]  # too slow
ROOT = Path(__file__).parent.parent


def tokens(n=4000, vocab_size=20):
    """A text that can be learnt: each token mostly follows from the one before it."""
    rng = np.random.default_rng(1)
    steps = np.where(rng.random(n) < 0.8, 3, rng.integers(vocab_size, size=n))
    return np.cumsum(steps) % vocab_size


def trainer(folder, model=None, ops="numpy", collator=None, **arguments):
    train_dataset, eval_dataset = TextDataset.from_tokens(tokens(), 17).split(0.1)
    model = model or GPT(TINY, ops, seed=3)
    defaults = dict(max_steps=12, learning_rate=1e-2, lr_scheduler_type="cosine", warmup_steps=3, weight_decay=0.1,
                    logging_steps=2, eval_strategy="steps", eval_steps=4, save_steps=4, per_device_train_batch_size=4)
    return Trainer(model, TrainingArguments(output_dir=str(folder), **defaults | arguments), data_collator=collator,
                   train_dataset=train_dataset, eval_dataset=eval_dataset)


def weights(model):
    return {name: param.tobytes() for name, param in model.params.items()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same_run(a, b):
    """Two folders hold the same files, with the same content but for the times."""
    a, b = Path(a), Path(b)
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (a, b)]
    assert files[0] == files[1], files
    for name in files[0]:
        if (a / name).is_file() and name.name not in ("metrics.jsonl", "trainer_state.json", "loss.png"):
            assert (a / name).read_bytes() == (b / name).read_bytes(), name
    logs = []
    for folder in (a, b):
        entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        logs.append([{k: v for k, v in entry.items() if k not in ("tokens_per_second", "eval_runtime")}
                     for entry in entries])
    assert logs[0] == logs[1]


def at_step(run, step, action):
    """Calls `action` while the step after `step` others is computed."""
    backward = run.model.backward

    def acting(**kwargs):
        if run.state.global_step == step:
            action()
        return backward(**kwargs)

    run.model.backward = acting
