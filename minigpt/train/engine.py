"""What the Trainer needs of a model, whoever computes it. An engine is a model together with its optimiser, and has

    ranks                           the processes that share the run (ranks.py)
    describe()                      what computes, in a few words: the weights' last bits depend on it
    begin()                         a new optimiser, for a run's first step or before load()
    gradients(micro_batches)        -> loss, norm: the mean loss over all targets of all micro-batches, and the length
                                    of its gradient, which the engine keeps; FloatingPointError if it cannot be had
    step(number, lr, grad_scale)    moves the weights along that gradient times grad_scale; `number` counts from 1
    figures()                       {name: number or list} to log beside the loss
    sum_of_losses(tokens, targets)  for evaluation: over one batch, a float
    is_finite()                     whether all weights are finite numbers
    save(folder, tokenizer)         the model's files, and optimizer.safetensors with the moments m.<name> and v.<name>
    save_model(folder, tokenizer)   the model's files alone
    load(folder, step)              takes up what save() wrote after `step` steps
    load_weights(folder)            the weights alone

OpsEngine, below, is that of GPT over `ops`; TorchEngine, in minigpt/scale/engine.py, that of its torch twin. They read
each other's files. A micro-batch is (tokens, targets), arrays (B, T) each.
"""

import math
import sys

import numpy as np

from ..files import load_pretrained
from ..files.safetensors import SafeTensors, write_safetensors
from ..model import GPT
from ..moe import balance_experts, expert_load
from ..ranks import Alone, number_of_ranks
from .muon import Muon
from .optimizer import AdamW, global_norm

IGNORED = -100  # the target of a position that does not count
OPTIMIZER = "optimizer.safetensors"
TWIN_ONLY = ("bf16", "fp16", "gradient_checkpointing", "torch_compile", "parallel")


def make_engine(model, args):
    """The engine for a model of that type. torch is not imported for a GPT."""
    if number_of_ranks() > 1 and not args.parallel:
        raise ValueError(f"Trainer: {number_of_ranks()} ranks were started, but parallel is None, so each would train "
                         "for itself; give parallel, or start one")
    if isinstance(model, GPT):
        return OpsEngine(model, args)
    twin = sys.modules.get("minigpt.scale.twin")  # whoever has a twin has imported it
    if twin and isinstance(model, twin.TorchGPT):
        if args.parallel:
            from ..scale.parallel import ParallelEngine
            return ParallelEngine(model, args)
        from ..scale.engine import TorchEngine
        return TorchEngine(model, args)
    raise TypeError(f"Trainer: model is {model!r}, must be a GPT or a TorchGPT")


class OpsEngine:
    def __init__(self, model, args):
        for name in TWIN_ONLY:
            if getattr(args, name):
                raise ValueError(f"Trainer: {name} is {getattr(args, name)}, but GPT over ops has no such thing; train "
                                 "its torch twin: minigpt.scale.TorchGPT, --engine torch on the command line")
        self.model, self.args = model, args
        self.ranks, self.optimizer = Alone(), None

    def describe(self):
        return f"ops {self.model.ops.name}"

    def begin(self):
        args = self.args
        params = {name: self.model.params[name] for name in self.model.grads}
        adam = dict(beta1=args.adam_beta1, beta2=args.adam_beta2, eps=args.adam_epsilon, weight_decay=args.weight_decay)
        if args.optim == "muon":
            self.optimizer = Muon(params, self.model.config, self.model.ops, args.muon_learning_rate,
                                  args.learning_rate, **adam)
        else:
            self.optimizer = AdamW(params, self.model.ops, **adam)

    def gradients(self, micro_batches):
        """The gradients of the micro-batches are divided by the targets of all of them, so they add up to the gradient
        of one large batch."""
        model, counts = self.model, counted(micro_batches)
        model.zero_grad()
        total = 0.0
        for (tokens, targets), count in zip(micro_batches, counts, strict=True):
            total += count * model.forward(tokens, targets)
            model.backward(divisor=sum(counts))
        return total / max(1, sum(counts)), global_norm(model.grads, model.ops)

    def step(self, number, lr, grad_scale):
        self.optimizer.step(self.model.grads, number, lr, grad_scale)
        balance_experts(self.model)

    def figures(self):
        load = expert_load(self.model)
        return {"expert_load": load} if load else {}

    def sum_of_losses(self, tokens, targets):
        return float(self.model.token_losses(tokens, targets).sum(dtype=np.float64))

    def is_finite(self):
        return math.isfinite(global_norm(self.model.params, self.model.ops))

    def save(self, folder, tokenizer):
        self.model.save_pretrained(folder, tokenizer)
        write_safetensors(folder / OPTIMIZER, self.optimizer.state_dict())

    def save_model(self, folder, tokenizer):
        self.model.save_pretrained(folder, tokenizer)

    def load(self, folder, step):
        self.load_weights(folder)
        self.optimizer.load_state_dict(SafeTensors(folder / OPTIMIZER))

    def load_weights(self, folder):
        _, saved = load_pretrained(folder)
        for name, param in self.model.params.items():
            param[...] = saved[name]


def counted(micro_batches):
    """How many targets of each micro-batch count."""
    return [int(np.count_nonzero(targets != IGNORED)) for _, targets in micro_batches]
