"""A whole training run: nanoGPT's setting for a CPU (4 layers 128 wide, 12 blocks of 64 characters, 2000 steps) on a
text, by our Trainer and by the same model in torch as nanoGPT trains it, one after the other in one process.

    minigpt bench shakespeare --data tutorials/data/shakespeare.txt

Both start from the same weights, with the same learning rates, and are timed with their evaluations, every 250 steps
over the whole last tenth of the text. nanoGPT's own rate is 1e-3; three times as much serves both better.
"""

import sys
import tempfile
import time

import numpy as np

from ..commands.train import DEFAULTS, text_file
from ..config import ModelConfig
from ..model import GPT
from ..text import CharTokenizer, TextDataset
from ..train import Trainer, TrainingArguments
from ..train.schedule import learning_rate
from .timing import watched

LEARNING_RATE, MIN_LR = 3e-3, 1e-4


def rows(ops, torch, options):
    """Yields one row: the seconds of each variant, and in its name their last losses."""
    if options["setting"] == "best":  # the best setting of torch for a model of this size is torch.compile
        return
    steps = 4 if options["tiny"] else DEFAULTS["max_steps"]
    with text_file(options["data"]) as file:
        tokenizer = CharTokenizer.train(file)
    config = ModelConfig.preset("char", vocab_size=tokenizer.vocab_size)
    train, held_out = TextDataset(tokenizer, options["data"], config.block_size + 1).split(0.1)
    settings = dict(DEFAULTS, max_steps=steps, learning_rate=LEARNING_RATE, lr_scheduler_type="cosine_with_min_lr",
                    lr_scheduler_kwargs={"min_lr": MIN_LR}, save_strategy="no", load_best_model_at_end=False,
                    eval_steps=min(DEFAULTS["eval_steps"], steps))
    runs = {"ours": _watched(_ours, ops, config, settings, train, held_out)}
    if torch:
        runs["torch"] = _watched(_torch, torch, config, settings, train, held_out)
        if not options["tiny"]:
            runs["compiled"] = _watched(_torch, torch, config, settings, train, held_out, compiled=True)
    losses = ", ".join(f"{name} {loss:.3f}" for name, (_, loss) in runs.items())
    yield {
        "work": f"{steps} steps of nanoGPT's CPU setting; validation loss: {losses}",
        "peer": "nanoGPT in torch",
        "flops": 3 * steps * DEFAULTS["per_device_train_batch_size"] * config.block_size
        * config.flops_per_token(config.block_size),
        "limit": "fma",
        **{name: summary for name, (summary, _) in runs.items()},
    }


def _watched(train, *args, **options):
    """Trains -> (the summary of a run that was made once, the last validation loss); noisy if something else ran."""
    (seconds, loss), clean = watched(lambda: train(*args, **options))
    return {"median": seconds, "q1": seconds, "q3": seconds, "calls": 1, "clean_blocks": int(clean),
            "noisy": not clean}, loss


def _ours(ops, config, settings, train, held_out):
    """-> (seconds, last validation loss)"""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=f"{folder}/run", disable_tqdm=True, **settings)
        trainer = Trainer(GPT(config, ops), arguments, train_dataset=train, eval_dataset=held_out)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start, trainer.state.log_history[-1]["eval_loss"]


def _torch(torch, config, settings, train, held_out, compiled=False):
    """As nanoGPT's train.py: random blocks of the text, clipping, fused AdamW. -> (seconds, last validation loss)"""
    from .nanogpt import NanoGPT

    arguments = TrainingArguments(output_dir="unused", **settings)
    model, B, T = NanoGPT(config, GPT(config, "numpy").params), arguments.per_device_train_batch_size, config.block_size
    optimizer = model.optimizer(arguments.learning_rate, beta2=arguments.adam_beta2)
    loss_of, rng = torch.compile(model) if compiled else model, np.random.default_rng(0)
    tokens = np.asarray(train.tokens, np.int64)
    blocks = np.stack([held_out[i] for i in range(len(held_out))]).astype(np.int64)

    @torch.no_grad()
    def evaluate():
        parts = [torch.from_numpy(blocks[i:i + B]) for i in range(0, len(blocks) - len(blocks) % B, B)]
        return sum(loss_of(part[:, :-1], part[:, 1:]).item() for part in parts) / len(parts)

    start = time.perf_counter()
    for step in range(arguments.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(arguments, step, arguments.max_steps)
        starts = rng.integers(0, len(tokens) - T, B)
        batch = torch.from_numpy(np.stack([tokens[s:s + T + 1] for s in starts]))
        loss = loss_of(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % arguments.logging_steps == 0:
            loss.item()
        if (step + 1) % arguments.eval_steps == 0:
            last = evaluate()
            print(f"torch{', compiled' * compiled}: step {step + 1}, {time.perf_counter() - start:.0f} s, "
                  f"validation loss {last:.4f}", file=sys.stderr)
    return time.perf_counter() - start, last
