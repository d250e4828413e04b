"""minigpt demo: trains a small GPT for about two minutes on the English that ships with Python, and shows what it has
learnt: a picture of the loss, and a text that it writes. Nothing is downloaded."""

import io
import time
from pathlib import Path

import numpy as np

from ..config import ModelConfig
from ..train import checkpoint
from ..train.state import read_state
from .generate import write_text
from .train import check_out, picture, text_file, train_and_save

DEFAULT_OUT = "out/demo"
BATCH, LEARNING_RATE, EVAL_FRACTION = 8, 3e-3, 0.05


def add_arguments(parser):
    parser.add_argument("--data", metavar="FILE", help="any UTF-8 text (default: the help texts of Python)")
    parser.add_argument("--out", default=DEFAULT_OUT, metavar="DIR", help="folder for results (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=2.0, metavar="X",
                        help="how long to train, about (default: %(default)s)")
    parser.add_argument("--max-steps", type=int, metavar="N", help="how many steps to train, instead")
    parser.add_argument("--resume", action="store_true", help="go on with a demo that was stopped")
    parser.add_argument("--ops", metavar="NAME", help="backend: cpp or numpy (default: the fastest)")


def run(args):
    out = Path(args.out)
    if not args.resume and args.out == DEFAULT_OUT:
        remove_demo(out)
    check_out(args)
    trainer = make_trainer(args)
    model, tokenizer = trainer.model, trainer.processing_class
    print(f"{len(trainer.train_dataset.tokens):,} tokens of {tokenizer.vocab_size:,} kinds, for a GPT of "
          f"{model.config.n_layer} layers and {model.num_parameters():,} parameters (ops: {model.ops.name}).")
    train_and_save(trainer, args.resume)
    sample, prompt = io.StringIO(), "The" if args.data else "The statement"
    write_text(model, tokenizer, prompt, sample, max_new_tokens=200, temperature=0.7, top_k=50, seed=0)
    (out / "sample.txt").write_text(sample.getvalue(), encoding="utf-8")
    print(f"This is what it writes now (more of it: minigpt generate --model {out} --prompt \"{prompt}\"):\n\n"
          f"{sample.getvalue()}\n"
          f"How its loss fell is {picture(out)}.\n"
          "Train one on a text of your own: minigpt train --data FILE --out out/mine\n"
          "See how it is done: minigpt/model.py, on minigpt/ops/numpy_ops.py")


def make_trainer(args):
    """The Trainer of the demo: a tokenizer of its own for the text, blocks that overlap because the text is short."""
    from ..model import GPT
    from ..text import TextDataset, Tokenizer, default_corpus
    from ..train import Trainer, TrainingArguments

    if args.data:
        with text_file(args.data) as file:
            text = file.read()
    else:
        text = default_corpus()
    tokenizer = Tokenizer.train(text, ModelConfig.preset("demo").vocab_size)
    config = ModelConfig.preset("demo", vocab_size=tokenizer.vocab_size)  # a short text may have fewer tokens
    tokens, block = tokenizer.encode(text), config.block_size + 1
    if len(tokens) < block / EVAL_FRACTION:
        raise ValueError(f"--data: {args.data} has {len(tokens)} tokens, must have {block / EVAL_FRACTION:.0f} or more")
    train_text, eval_text = TextDataset.from_tokens(tokens, block).split(EVAL_FRACTION)
    overlapping = TextDataset.from_tokens(train_text.tokens, block, stride=config.block_size // 4)
    model = GPT(config, ops=args.ops)
    steps = args.max_steps or (earlier_steps(args.out) if args.resume else steps_in(args.minutes, model))
    arguments = TrainingArguments(
        output_dir=args.out, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine", warmup_steps=max(20, steps // 20), weight_decay=0.1, adam_beta2=0.99,
        logging_steps=max(1, steps // 100), eval_strategy="steps", eval_steps=max(1, steps // 10),
        save_steps=max(1, steps // 5), save_total_limit=1, load_best_model_at_end=True)
    return Trainer(model, arguments, train_dataset=overlapping, eval_dataset=eval_text, processing_class=tokenizer)


def steps_in(minutes, model):
    """The number of steps that fit into so many minutes on this machine, by the time that a few of them take."""
    if not 0 < minutes < 1e6:
        raise ValueError(f"--minutes is {minutes}, must be more than 0 and less than a million")
    shape, vocab_size = (BATCH, model.config.block_size), model.config.vocab_size
    tokens = np.random.default_rng(0).integers(vocab_size, size=shape)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        model.forward(tokens, tokens)
        model.backward()
        seconds.append(time.perf_counter() - start)
    return max(20, round(60 * minutes / (1.1 * sorted(seconds)[3])))  # a tenth for the optimiser and for evaluation


def earlier_steps(out):
    """How long the demo in `out` was to be."""
    checkpoints = list(checkpoint.listed(out).values())
    if not checkpoints:
        raise ValueError(f"--resume: there is no checkpoint of a demo in {out}")
    return read_state(checkpoints[-1])[0].max_steps


def remove_demo(out):
    """Deletes what an earlier demo made, and nothing else."""
    for path in checkpoint.listed(out).values():
        checkpoint.remove(path)
    for name in ("metrics.jsonl", "loss.png", "sample.txt", "model.safetensors", "config.json",
                 "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (out / name).unlink(missing_ok=True)
