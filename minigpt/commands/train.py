"""minigpt train: a text file in, a trained model out.

The defaults are nanoGPT's for a CPU: 2000 steps of 12 blocks of 64 characters, a learning rate of 1e-3. Every field of
TrainingArguments and of ModelConfig is an option too, under its own name. On tiny Shakespeare,

    minigpt train --data tutorials/data/shakespeare.txt --out out/shakespeare --learning-rate 3e-3 --min-lr 1e-4

this reaches a validation loss of 1.77 over the whole last tenth of the text, and the default learning rate 1.91. How
the same model in torch fares, and how long each takes: minigpt bench shakespeare --data tutorials/data/shakespeare.txt.
"""

import re
import shlex
import sys
from argparse import SUPPRESS, BooleanOptionalAction
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

from ..config import PRESETS, ModelConfig
from ..ranks import is_first, is_restart, number_of_ranks
from ..train import checkpoint
from ..train.arguments import TrainingArguments
from ..train.engine import TWIN_ONLY

DEFAULTS = dict(per_device_train_batch_size=12, max_steps=2000, learning_rate=1e-3, warmup_steps=100, weight_decay=0.1,
                adam_beta2=0.99, logging_steps=50, eval_strategy="steps", eval_steps=250, save_steps=250,
                save_total_limit=1, load_best_model_at_end=True)
OWN_OPTION = {"output_dir", "seed", "lr_scheduler_type", "lr_scheduler_kwargs", "report_to", "vocab_size",
              "causal", "bf16", "fp16"}
OPTION_OF = {"data_collator": "--objective", "train_dataset": "--data", "tokenizer": "--tokenizer"}
HELP = {  # of options that their names do not explain
    "parallel": "on several ranks, under torchrun: ddp, fsdp, tp=N, ep=N, or with copies tp=N,dp=M and ep=N,dp=M",
    "optim": "adamw, or muon for the matrices of the layers",
    "share_layers": "all layers have the weights of one (ALBERT)",
    "n_expert": "experts in a layer, in place of an MLP; 0: none",
    "n_expert_active": "how many of them a token goes through",
    "n_expert_shared": "experts beside them that every token goes through",
    "router_bias": "balances the experts without a loss, by a bias that follows their load",
    "kv_lora_rank": "latent attention: numbers kept of a token's keys and values; 0: ordinary attention",
}
ENGINES, PRECISIONS, KERNELS = ("ops", "torch"), ("fp32", "bf16", "fp16"), ("minigpt", "torch")


def add_arguments(parser):
    parser.add_argument("--data", required=True, metavar="FILE", help="any UTF-8 text")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for model, checkpoints, log and picture")
    parser.add_argument("--objective", default="causal", choices=("causal", "masked", "knowledge"),
                        help="predict the next token, hidden tokens (BERT), or hidden names (needs --entities); "
                        "default: %(default)s")
    parser.add_argument("--entities", metavar="FILE",
                        help="knowledge: the names to hide, one a line, or WordNet's index.noun for its phrases")
    parser.add_argument("--triples", metavar="FILE",
                        help="knowledge: facts to mix in, one a line: subject, relation and object with tabs between")
    parser.add_argument("--preset", default="char", choices=PRESETS, metavar="NAME",
                        help=f"{', '.join(PRESETS)} (default: %(default)s)")
    parser.add_argument("--tokenizer", metavar="KIND", default=SUPPRESS,
                        help="char, bpe (trained on the text), or a folder or file to read one from (default: char for "
                        "the char presets, else bpe)")
    parser.add_argument("--vocab-size", type=int, metavar="N", default=SUPPRESS,
                        help="of a bpe tokenizer (default: the preset's)")
    parser.add_argument("--ops", metavar="NAME", help="backend: cpp or numpy (default: the fastest)", default=SUPPRESS)
    parser.add_argument("--engine", choices=ENGINES, default="ops",
                        help="ops: GPT over a backend; torch: its torch twin, on a GPU where torch sees one")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of matrix products and attention; 16 "
                        "bits with --engine torch (default: %(default)s)")
    parser.add_argument("--kernels", choices=KERNELS, default=SUPPRESS,
                        help="with --engine torch: these kernels, or torch's own (default: minigpt)")
    parser.add_argument("--seed", type=int, default=0, metavar="S",
                        help="of the first weights and the order of the data (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in DIR")
    parser.add_argument("--eval-fraction", type=float, default=0.1, metavar="X",
                        help="share of the text, at its end, to evaluate on (default: %(default)s)")
    parser.add_argument("--min-lr", type=float, metavar="X", default=SUPPRESS,
                        help="learning rate at the end of the cosine (default: a tenth of the highest)")
    add_fields(parser.add_argument_group("training, as TrainingArguments"), TrainingArguments, DEFAULTS)
    add_fields(parser.add_argument_group("the model (default: the preset's)"), ModelConfig, None)


def add_fields(group, cls, defaults):
    """An option for every field of a dataclass that has none of its own, with its default, or another from `defaults`
    (None: no default is shown)."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        if field.name in OWN_OPTION:
            continue
        kinds = [kind for kind in get_args(hints[field.name]) or [hints[field.name]] if kind is not type(None)]
        default = (defaults or {}).get(field.name, SUPPRESS)
        option = dict(action=BooleanOptionalAction) if kinds == [bool] else dict(type=kinds[0], metavar="X")
        shown = None if defaults is None else f"default: {field.default if default is SUPPRESS else default}"
        group.add_argument(as_option(field.name), default=default,
                           help="; ".join(filter(None, (HELP.get(field.name), shown))) or None, **option)


def as_option(name):
    """The option for a field, other words as they are: max_steps -> --max-steps."""
    fields_of_both = {field.name for cls in (TrainingArguments, ModelConfig) for field in fields(cls)}
    return f"--{name.replace('_', '-')}" if name in fields_of_both else OPTION_OF.get(name, name)


def given(args, cls):
    """{field: value} of the options of `cls` that were given or have a default."""
    return {field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)}


def run(args):
    from ..text import TextDataset
    from ..train import Trainer

    check_out(args)
    check_engine(args)
    check_meaning(args)
    sources = read_knowledge(args)
    tokenizer, causal = make_tokenizer(args), args.objective == "causal"
    if not causal and tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    shape = {"vocab_size": tokenizer.vocab_size, "causal": causal}
    config = ModelConfig.preset(args.preset, **given(args, ModelConfig) | shape)
    dataset = TextDataset(tokenizer, args.data, config.block_size + causal)  # a causal model predicts the last one
    train_dataset, eval_dataset = dataset.split(args.eval_fraction)
    own = dict(output_dir=args.out, seed=args.seed, **schedule(args))
    own |= {name: True for name in ("bf16", "fp16") if name == args.precision}
    arguments = TrainingArguments(**given(args, TrainingArguments) | own)
    collator = make_collator(args, tokenizer, *sources, train_dataset)
    trainer = Trainer(make_model(args, config), arguments, collator, train_dataset, eval_dataset, tokenizer)
    say = print if is_first() else lambda text: None
    say(f"{config.num_parameters():,} parameters, {len(train_dataset.tokens):,} tokens to train on, "
        f"{len(eval_dataset.tokens):,} to evaluate on, {trainer.engine.describe()}")
    train_and_save(trainer, args.resume)
    say(f"The model is in {args.out}, its loss curve {picture(args.out)}.")
    if causal:
        say(f"Let it write:\n  minigpt generate --model {shlex.quote(args.out)} --prompt \"...\"")
    trainer.ranks.close()


def check_out(args):
    """ValueError, before any work is done, for a folder that this run may not write into."""
    if checkpoint.holds_run(args.out) and not (args.resume or is_restart()):
        raise ValueError(f"--out {args.out} holds a run already; go on with it (--resume), or choose another folder")


def check_engine(args):
    """ValueError for options that the engine does not have; ImportError, which says how to get it, without torch."""
    if args.engine == "torch":
        from ..scale import TorchGPT  # noqa: F401
        if hasattr(args, "ops"):
            raise ValueError(f"--ops is {args.ops}, means nothing with --engine torch; --kernels is minigpt or torch")
        return
    for name in ("kernels", *TWIN_ONLY, "precision"):
        if getattr(args, name, None) not in (None, False, "fp32"):
            value = getattr(args, name)
            given = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            raise ValueError(f"{given} needs the torch twin of the model: --engine torch")


def check_meaning(args):
    """ValueError for options that would change nothing."""
    experts = getattr(args, "n_expert", PRESETS[args.preset].get("n_expert", 0))
    for name, means, needed in (("muon_learning_rate", getattr(args, "optim", "adamw") == "muon", "--optim muon"),
                                ("expert_inner", experts != 0, "experts: --n-expert")):
        if hasattr(args, name) and not means:
            raise ValueError(f"{as_option(name)} is {getattr(args, name)}, means nothing without {needed}")


def make_model(args, config):
    if args.engine == "torch":
        from ..scale import TorchGPT, best_device
        return TorchGPT(config, getattr(args, "kernels", "minigpt"), seed=args.seed).to(best_device())
    from ..model import GPT
    return GPT(config, ops=getattr(args, "ops", None), seed=args.seed)


def picture(out):
    """Where the loss curve is, in words."""
    path = Path(out, "loss.png")
    return f"in {path}" if path.exists() else f"in {Path(out, 'metrics.jsonl')} (a picture needs matplotlib)"


def schedule(args):
    """A cosine down to --min-lr."""
    min_lr = getattr(args, "min_lr", args.learning_rate / 10)
    return dict(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": min_lr})


def train_and_save(trainer, resume):
    """Trains and writes the model into output_dir. After Ctrl-C, says how to go on."""
    checkpoints = checkpoint.listed(trainer.args.output_dir)
    before = max(checkpoints, default=0)
    if before and is_first():
        print(f"Going on from {checkpoints[before]}.")
    try:
        trainer.train(resume_from_checkpoint=resume)
    except ValueError as error:  # the arguments that it names are options here
        message = str(error).replace("output_dir", "--out")
        raise ValueError(re.sub(r"\b\w+(?= was )|\b\w+_\w+\b", lambda name: as_option(name[0]), message)) from None
    except KeyboardInterrupt as stop:
        if not stop.args:  # a second Ctrl-C, before anything was saved
            raise
        state, command = trainer.state, [argument for argument in sys.argv[1:] if argument != "--resume"]
        ranks = number_of_ranks()
        program = "minigpt" if ranks == 1 else f"torchrun --nproc-per-node {ranks} -m minigpt"
        raise KeyboardInterrupt(f"stopped after step {state.global_step} of {state.max_steps}, everything is saved; go "
                                f"on with: {program} {shlex.join(command)} --resume") from None
    if before == trainer.state.global_step and is_first():
        print(f"Training is already at step {before} of {trainer.state.max_steps}.")
    trainer.save_model()


def make_tokenizer(args):
    from ..text import CharTokenizer, Tokenizer

    kind = getattr(args, "tokenizer", "char" if "char" in args.preset else "bpe")
    if kind not in ("char", "bpe"):
        return Tokenizer.from_pretrained(kind) if Path(kind).is_dir() else Tokenizer.from_file(kind)
    with text_file(args.data) as file:
        if kind == "char":
            return CharTokenizer.train(file)
        return Tokenizer.train(file, getattr(args, "vocab_size", PRESETS[args.preset]["vocab_size"]))


def read_knowledge(args):
    """(names, sentences of triples) of --entities and --triples. ValueError for a file that holds none."""
    from ..text.knowledge import read_names, read_triples, verbalise

    if args.objective != "knowledge":
        for name in ("entities", "triples"):
            if getattr(args, name):
                raise ValueError(f"--{name} is for --objective knowledge, the objective is {args.objective}")
        return [], []
    if not args.entities:
        raise ValueError("--objective knowledge needs the names to hide: --entities FILE")
    return read_names(args.entities), verbalise(read_triples(args.triples)) if args.triples else []


def make_collator(args, tokenizer, names, sentences, dataset):
    """The collator of --objective; what it draws follows from the Trainer's seed."""
    from ..text import DataCollatorForKnowledge, DataCollatorForLanguageModeling

    if args.objective == "knowledge":
        return DataCollatorForKnowledge(tokenizer, make_gazetteer(args, tokenizer, names, dataset), triples=sentences)
    return DataCollatorForLanguageModeling(tokenizer) if args.objective == "masked" else None


def make_gazetteer(args, tokenizer, names, dataset):
    """The names of --entities; says how many of them the blocks of the text hold. ValueError if it is none."""
    from ..text import Gazetteer

    try:
        gazetteer = Gazetteer(names, tokenizer)
    except ValueError as error:
        raise ValueError(f"--entities {args.entities}: {error}") from None
    found = set()
    for ids in (dataset[i] for i in range(len(dataset))):
        found |= {tokenizer.decode(ids[start:end]).strip() for start, end in gazetteer.find(ids)}
    if not found:
        raise ValueError(f"--entities {args.entities}: none of its names is in {args.data}, one or more must be")
    if is_first():
        total = len(set(names))
        print(f"{total:,} names, {len(found):,} of them in the text, {total - len(gazetteer):,} left out, which the "
              "tokenizer cannot write")
    return gazetteer


@contextmanager
def text_file(path):
    """Opens a UTF-8 text for reading; ValueError if it is no plain file, empty or not UTF-8."""
    if not Path(path).is_file():
        what = "is not a plain file" if path and Path(path).exists() else "does not exist"
        raise ValueError(f"--data: {path!r} {what}, must be a UTF-8 text")
    if not Path(path).stat().st_size:
        raise ValueError(f"--data: {path} is empty")
    with open(path, encoding="utf-8", newline="") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise ValueError(f"--data: {path} is not UTF-8 text: byte 0x{byte:02x}, {error.reason}") from None
