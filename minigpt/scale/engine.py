"""TorchEngine: how the Trainer drives the torch twin. Its methods are those of minigpt.train.engine, and so are its
files; the optimiser is torch's AdamW, fused where torch can. It computes where the model is, on the CPU or a GPU, in
the precision that the arguments ask for (precision.py).
"""

import math
import os
import shutil
import sys
import warnings
from contextlib import nullcontext

import numpy as np
import torch

from ..config import is_trained
from ..files import load_pretrained
from ..files.safetensors import SafeTensors, write_safetensors
from ..ranks import Alone
from ..train.engine import OPTIMIZER, counted
from ..train.muon import is_hidden, rows_of_matrices
from ..train.optimizer import decays, read_moments
from . import checkpoint, places
from .moe import balance_experts, experts_of
from .muon import MuonAndAdamW
from .precision import DTYPES, LossScale, autocast, precision
from .precision import FILE as LOSS_SCALE
from .twin import as_array

MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}  # ours, torch's


class TorchEngine:
    def __init__(self, model, args):
        self.model, self.args, self.precision = model, args, precision(args)
        if DTYPES[self.precision] and model.dtype != torch.float32:
            raise ValueError(f"Trainer: {self.precision} is True, but the weights are {model.dtype}, must be float32 "
                             "(model.float()): they are what the optimiser moves")
        model.gradient_checkpointing = args.gradient_checkpointing
        self.module = compiled(model) if args.torch_compile else model    # what is called: the model, or around it
        self.ranks = Alone()
        self.optimizer = self.scale = None  # both made by begin()

    def describe(self):
        compiled = ", compiled" * self.args.torch_compile
        return f"ops torch, kernels of {self.model.kernels}, {self.precision}{compiled}"

    def begin(self):
        args, groups = self.args, {}
        for name, param in self.model.named_parameters():
            muon = args.optim == "muon" and is_hidden(name, param.ndim)
            rows = rows_of_matrices(name, param.shape, self.model.config) if muon else None
            groups.setdefault((rows, decays(param)), []).append(param)
        groups = [{"params": params, "weight_decay": args.weight_decay if decaying else 0.0, "rows": rows,
                   "muon_lr_ratio": args.muon_learning_rate / args.learning_rate if rows else None}
                  for (rows, decaying), params in groups.items()]
        kind = MuonAndAdamW if args.optim == "muon" else torch.optim.AdamW
        self.optimizer = kind(groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2),
                              eps=args.adam_epsilon, fused=self.model.device.type in ("cpu", "cuda"))
        self.scale = LossScale() if self.precision == "fp16" else None

    def gradients(self, micro_batches):
        """In fp16, gradients that overflow are computed once more at half the loss scale, so no batch is left out."""
        while True:
            loss, norm = self._backward(micro_batches)
            if self.scale is None or not math.isfinite(loss) or math.isfinite(norm):
                return loss, norm
            self.scale.overflowed()

    def _backward(self, micro_batches):
        """Leaves the gradients, times the loss scale, in the parameters."""
        counts, total = counted(micro_batches), 0.0
        divisor = max(1, *self.ranks.sum(sum(counts)))
        scale = self.scale.value if self.scale else 1.0
        self.optimizer.zero_grad()
        for number, (tokens, targets) in enumerate(micro_batches, 1):
            for layer in experts_of(self.model):
                layer.share = counts[number - 1] * scale / divisor
            with self._exchange(number == len(micro_batches)):
                losses = self._losses(tokens, targets)                                              # (B, T)
                (losses.sum() * (scale / divisor)).backward()
            total += losses.detach().sum(dtype=torch.float64)
        return self.ranks.sum(float(total))[0] / divisor, self._norm() / scale

    def step(self, number, lr, grad_scale):
        if self.scale:
            grad_scale /= self.scale.value
            self.scale.advance()
        if grad_scale != 1:
            torch._foreach_mul_(self._grads(), grad_scale)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self._expert_load = balance_experts(self.model)

    def figures(self):
        load = {"expert_load": self._expert_load} if self._expert_load else {}
        return load | ({"loss_scale": self.scale.value, "skipped_steps": self.scale.skipped} if self.scale else {})

    @torch.no_grad()
    def sum_of_losses(self, tokens, targets):
        return float(self._losses(tokens, targets).sum(dtype=torch.float64))

    def is_finite(self):
        return all(bool(param.isfinite().all()) for param in self.model.parameters())

    def save(self, folder, tokenizer):
        self.model.save_pretrained(folder, tokenizer)
        state = {f"{ours}.{name}": as_array(self.optimizer.state[param][theirs])
                 for name, param in self.model.named_parameters() for ours, theirs in self._moments(name).items()}
        write_safetensors(folder / OPTIMIZER, state)
        if self.scale:
            self.scale.save(folder)

    def save_model(self, folder, tokenizer):
        self.model.save_pretrained(folder, tokenizer)

    def load(self, folder, step):
        for name, param in self.model.named_parameters():
            moments = {theirs: torch.zeros_like(param) for theirs in self._moments(name).values()}
            self.optimizer.state[param] = {"step": torch.tensor(float(step), device=param.device), **moments}
        if self.scale and (folder / LOSS_SCALE).exists():             # in no checkpoint of another precision
            self.scale.load(folder)
        if checkpoint.is_sharded(folder):
            return checkpoint.read(folder, self._pieces("", *MOMENTS))
        self.load_weights(folder)
        shapes = {f"{kind}.{name}": shape for name, shape in self.model.config.parameter_shapes().items()
                  if is_trained(name) for kind in self._moments(name)}
        saved = read_moments(SafeTensors(folder / OPTIMIZER), shapes)
        for kind in MOMENTS:
            self._fill(kind, {name[2:]: moment for name, moment in saved.items() if name.startswith(f"{kind}.")})

    def load_weights(self, folder):
        if checkpoint.is_sharded(folder):
            return checkpoint.read(folder, self._pieces(""))
        self._fill("", load_pretrained(folder)[1])

    def _moments(self, name):
        """What the optimiser keeps for a parameter, {our name: torch's}: Muon has a momentum alone."""
        muon = self.args.optim == "muon" and is_hidden(name, len(self.model.config.parameter_shapes()[name]))
        return {"m": MOMENTS["m"]} if muon else MOMENTS

    def _pieces(self, *kinds):
        """{name: Piece} of the weights (""), and of the moments "m" and "v", that are here."""
        found = {}
        for kind in kinds:
            tensors = {name: param.detach() if not kind else self.optimizer.state[param][MOMENTS[kind]]
                       for name, param in self.model.named_parameters() if not kind or kind in self._moments(name)}
            if not kind:
                tensors |= {name: bias for name, bias in self.model.named_buffers() if not is_trained(name)}
            pieces = places.pieces(tensors, self.model.config, self._place)
            found |= {f"{kind}.{name}" if kind else name: piece for name, piece in pieces.items()}
        return found

    def _fill(self, kind, arrays):
        """Copies what belongs here of whole arrays, {name: array}."""
        pieces = self._pieces(kind)
        for name, array in places.split(arrays, self.model.config).items():
            piece = pieces.get(f"{kind}.{name}" if kind else name)
            if piece:
                piece.data.copy_(torch.from_numpy(np.array(array[piece.where])))

    # What is otherwise on several ranks (parallel.py)

    _place = staticmethod(places.whole)

    def _losses(self, tokens, targets):
        tokens, targets = self.model.checked_ids("tokens", tokens), self.model.checked_ids("targets", targets)
        with autocast(self.precision, self.model.device):
            return self.module(tokens, targets, reduction="none")

    def _exchange(self, now):
        return nullcontext()

    def _norm(self):
        return float(torch.nn.utils.get_total_norm(self._grads()))

    def _grads(self):
        return [param.grad for param in self.model.parameters() if param.grad is not None]


def compiled(model):
    """The model by torch.compile, in one graph; as it is, after a warning, where there is no compiler for that."""
    cxx = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if model.device.type == "cpu" and not shutil.which(cxx):
        warnings.warn(f"torch_compile needs a C++ compiler, and there is no {cxx} (CXX names another): "
                      "training goes on without", stacklevel=2)
        return model
    return torch.compile(model, fullgraph=True)
