"""TorchEngine: how the Trainer drives the torch twin. Its methods are those of minigpt.train.engine, and so are its
files; the optimiser is torch's AdamW, fused where torch can."""

import numpy as np
import torch

from ..files import load_pretrained
from ..files.safetensors import SafeTensors, write_safetensors
from ..train.engine import OPTIMIZER, counted
from ..train.optimizer import decays, read_moment
from .twin import as_array

MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}  # ours, torch's


class TorchEngine:
    def __init__(self, model, args):
        self.model, self.args = model, args
        self.optimizer = None

    def describe(self):
        return {"ops": f"torch, kernels of {self.model.kernels}"}

    def begin(self):
        args, params = self.args, [param for param in self.model.parameters() if param.requires_grad]
        groups = [{"params": [p for p in params if decays(p)], "weight_decay": args.weight_decay},
                  {"params": [p for p in params if not decays(p)], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2),
                                           eps=args.adam_epsilon, fused=self.model.device.type in ("cpu", "cuda"))

    def gradients(self, micro_batches):
        divisor, total = max(1, sum(counted(micro_batches))), 0.0
        self.optimizer.zero_grad()
        for tokens, targets in micro_batches:
            losses = self._losses(tokens, targets)                                                  # (B, T)
            (losses.sum() / divisor).backward()
            total += losses.detach().sum(dtype=torch.float64)
        norm = torch.nn.utils.get_total_norm(self._grads())
        return float(total) / divisor, float(norm)

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

    def load(self, folder, step):
        self.load_weights(folder)
        state = SafeTensors(folder / OPTIMIZER)
        for name, param in self.model.named_parameters():
            moments = {theirs: read_moment(state, f"{ours}.{name}", param.shape) for ours, theirs in MOMENTS.items()}
            moments = {theirs: torch.from_numpy(np.array(x)).to(param) for theirs, x in moments.items()}
            self.optimizer.state[param] = {"step": torch.tensor(float(step), device=param.device), **moments}

    def load_weights(self, folder):
        _, saved = load_pretrained(folder)
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in saved.items()})

    def _losses(self, tokens, targets):
        return self.model(tokens, targets, reduction="none")

    def _grads(self):
        return [param.grad for param in self.model.parameters() if param.grad is not None]
