"""TorchEngine: how the Trainer drives the torch twin. Its methods are those of minigpt.train.engine, and so are its
files; the optimiser is torch's AdamW, fused where torch can."""

from contextlib import nullcontext

import numpy as np
import torch

from ..files import load_pretrained
from ..files.safetensors import SafeTensors, write_safetensors
from ..train.engine import OPTIMIZER, counted
from ..train.optimizer import decays, read_moment
from ..train.ranks import Alone
from . import checkpoint, places
from .twin import as_array

MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}  # ours, torch's


class TorchEngine:
    def __init__(self, model, args):
        self.model, self.args = model, args
        self.ranks, self.optimizer = Alone(), None

    def describe(self):
        return {"ops": f"torch, kernels of {self.model.kernels}"}

    def begin(self):
        args, params = self.args, [param for param in self.model.parameters() if param.requires_grad]
        groups = [{"params": [p for p in params if decays(p)], "weight_decay": args.weight_decay},
                  {"params": [p for p in params if not decays(p)], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2),
                                           eps=args.adam_epsilon, fused=self.model.device.type in ("cpu", "cuda"))

    def gradients(self, micro_batches):
        divisor, total = max(1, *self.ranks.sum(sum(counted(micro_batches)))), 0.0
        self.optimizer.zero_grad()
        for number, (tokens, targets) in enumerate(micro_batches, 1):
            with self._exchange(number == len(micro_batches)):
                losses = self._losses(tokens, targets)                                              # (B, T)
                (losses.sum() / divisor).backward()
            total += losses.detach().sum(dtype=torch.float64)
        return self.ranks.sum(float(total))[0] / divisor, self._norm()

    def step(self, number, lr, grad_scale):
        if grad_scale != 1:
            torch._foreach_mul_(self._grads(), grad_scale)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()

    def figures(self):
        return {}

    @torch.no_grad()
    def sum_of_losses(self, tokens, targets):
        return float(self._losses(tokens, targets).sum(dtype=torch.float64))

    def is_finite(self):
        return all(bool(param.isfinite().all()) for param in self.model.parameters())

    def save(self, folder, tokenizer):
        self.model.save_pretrained(folder, tokenizer)
        state = {f"{ours}.{name}": as_array(self.optimizer.state[param][theirs])
                 for ours, theirs in MOMENTS.items() for name, param in self.model.named_parameters()}
        write_safetensors(folder / OPTIMIZER, state)

    def save_model(self, folder, tokenizer):
        self.model.save_pretrained(folder, tokenizer)

    def load(self, folder, step):
        for param in self.model.parameters():
            moments = {theirs: torch.zeros_like(param) for theirs in MOMENTS.values()}
            self.optimizer.state[param] = {"step": torch.tensor(float(step), device=param.device), **moments}
        if checkpoint.is_sharded(folder):
            return checkpoint.read(folder, self._pieces("", *MOMENTS))
        self.load_weights(folder)
        state, shapes = SafeTensors(folder / OPTIMIZER), self.model.config.parameter_shapes()
        for kind in MOMENTS:
            self._fill(kind, {name: read_moment(state, f"{kind}.{name}", shape) for name, shape in shapes.items()})

    def load_weights(self, folder):
        if checkpoint.is_sharded(folder):
            return checkpoint.read(folder, self._pieces(""))
        self._fill("", load_pretrained(folder)[1])

    def _pieces(self, *kinds):
        """{name: Piece} of the weights (""), and of the moments "m" and "v", that are here."""
        found = {}
        for kind in kinds:
            tensors = {name: param.detach() if not kind else self.optimizer.state[param][MOMENTS[kind]]
                       for name, param in self.model.named_parameters()}
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
        return self.model(tokens, targets, reduction="none")

    def _exchange(self, now):
        return nullcontext()

    def _norm(self):
        return float(torch.nn.utils.get_total_norm(self._grads()))

    def _grads(self):
        return [param.grad for param in self.model.parameters() if param.grad is not None]
