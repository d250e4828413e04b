"""minigpt plan: what training a model on a cluster takes, and the best way to lay it out; with --flops alone, the model
that so much computing trains best; with --published, plans beside runs that took place."""

import difflib
import json
import math
from argparse import ArgumentTypeError


def number(argument):
    """A number above 0 and up to 1e30, 13e12: products of two of them are still numbers."""
    try:
        value = float(argument)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e30:
        raise ArgumentTypeError(f"{argument!r} is not a positive number of at most 1e30")
    return value


def overhead(argument):
    """A number of 1 or more."""
    if number(argument) < 1:
        raise ArgumentTypeError(f"{argument!r} is less than 1: a data centre takes no less power than its servers")
    return number(argument)


def count(argument):
    """A whole number from 1 to MOST, 25000 or 25e3."""
    value = number(argument)
    if value > MOST or value != int(value):
        raise ArgumentTypeError(f"{argument!r} is not a whole number from 1 to {MOST:,}")
    return int(value)


MOST = 100_000_000


def add_arguments(parser):
    job = parser.add_argument_group("what to train, and on what")
    job.add_argument("--preset", metavar="NAME", help="a preset of ModelConfig: gpt2, llama3-405b, deepseek-v3, "
                     "moe-1.8t ...")
    job.add_argument("--gpus", type=count, metavar="N", help="number of GPUs")
    job.add_argument("--gpu", default="h100", metavar="NAME", help="a100, h100, h200 or b200 (default: %(default)s)")
    length = job.add_mutually_exclusive_group()
    length.add_argument("--tokens", type=number, metavar="N", help="tokens to train on (default: 20 for each parameter "
                        "that a token meets)")
    length.add_argument("--flops", type=number, metavar="C", help="FLOPs of the whole training, in place of tokens; "
                        "without --preset and --gpus: the size of model that they train best")
    job.add_argument("--seq", type=count, metavar="T", help="tokens of a text (default: the preset's block_size)")
    job.add_argument("--batch-tokens", type=number, metavar="N", help="tokens of a step; up to 10 %% more or less are "
                     "used where it splits better (default: 0.292 C^0.3271 for a training of C FLOPs)")
    job.add_argument("--precision", default="bf16", choices=("fp32", "bf16", "fp16"), help="default: %(default)s")
    layout = parser.add_argument_group("parts of the layout, where they are not to be searched for")
    for name in ("tensor", "pipeline", "expert", "micro-batch", "chunks"):
        layout.add_argument(f"--{name}", type=count, metavar="N")
    layout.add_argument("--zero", type=int, choices=(1, 2, 3))
    layout.add_argument("--recompute", choices=("none", "selective", "full"))
    assumed = parser.add_argument_group("assumptions that differ from place to place")
    assumed.add_argument("--gpus-per-node", type=count, metavar="N")
    assumed.add_argument("--pue", type=overhead, metavar="X", help="power of the data centre over that of its servers")
    assumed.add_argument("--price", type=number, metavar="X", help="of a GPU-hour; adds the cost")
    out = parser.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="all figures, as JSON (bytes, seconds, FLOPs)")
    out.add_argument("--picture", metavar="FILE", help="draw where memory and time go (PNG, SVG or PDF)")
    out.add_argument("--published", action="store_true", help="instead of a plan: plans beside published runs")


def run(args):
    from ..scale.planner import report
    from ..scale.planner.picture import check_path, draw
    from ..scale.planner.plan import compute_optimal, make_plan

    if args.published:
        from ..scale.planner import published
        print(published.markdown())
        return
    if args.flops is not None and args.preset is None and args.gpus is None:
        optimal = compute_optimal(args.flops)
        print(json.dumps(optimal, indent=1) if args.json else "\n".join(report.compute_optimal(optimal)))
        return
    if args.picture is not None:
        check_path(args.picture)
    for option in ("preset", "gpus"):
        if getattr(args, option) is None:
            raise ValueError(f"plan: --{option} is missing (minigpt plan --help tells more)")
    fixed = {field: getattr(args, field) for field in ("tensor", "pipeline", "expert", "micro_batch", "chunks", "zero",
                                                       "recompute") if getattr(args, field) is not None}
    job, tokens = _job(args)
    plan = make_plan(args.preset, job, tokens, fixed, args.price, batch_given=args.batch_tokens is not None)
    if args.picture is not None:
        draw(plan, args.picture)
    print(json.dumps(plan, indent=1) if args.json else report.text(plan))


def _job(args):
    """(Job, tokens to train on)."""
    from ..config import PRESETS, ModelConfig
    from ..scale.planner.chinchilla import batch_tokens
    from ..scale.planner.flops import training_flops
    from ..scale.planner.hardware import GPUS, PRECISIONS, Assumptions
    from ..scale.planner.step import Job

    config = ModelConfig.preset(_known("preset", args.preset, PRESETS))
    gpu = GPUS[_known("gpu", args.gpu, GPUS)]
    T = args.seq or config.block_size
    if config.position == "learned" and T > config.block_size:
        raise ValueError(f"plan: --seq is {T}, must be at most {config.block_size}: {args.preset} learns its positions")
    assume = {field: getattr(args, field) for field in ("gpus_per_node", "pue") if getattr(args, field) is not None}
    a_token = training_flops(config, T)
    tokens = args.flops / a_token if args.flops else args.tokens or 20.0 * config.num_active_parameters()
    batch = max(1, round((args.batch_tokens or min(batch_tokens(tokens * a_token), MOST * T)) / T))
    if batch > MOST:
        raise ValueError(f"plan: --batch-tokens is {args.batch_tokens:g}, must be at most {MOST:,} texts of {T:,}")
    return Job(config, T, batch, gpu, args.gpus, PRECISIONS[args.precision], Assumptions(**assume)), tokens


def _known(option, name, known):
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    raise ValueError(f"plan: no {option} named {name!r}" + (f", is {near[0]!r} meant" if near else "")
                     + f"? There are {', '.join(known)}")
