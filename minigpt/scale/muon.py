"""Muon for the torch twin: minigpt/train/muon.py in torch's words, with AdamW for what is no hidden matrix."""

import torch

from ..train.muon import MOMENTUM, ROUNDS, A, B, C


def orthogonalised(x):
    """x (..., rows, columns) -> the matrices with the same singular vectors and singular values near 1."""
    if x.shape[-2] > x.shape[-1]:
        return orthogonalised(x.mT).mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


class MuonAndAdamW(torch.optim.AdamW):
    """torch's AdamW, but for the groups that have a "muon_lr_ratio", whose matrices Muon moves at that many times the
    learning rate; their "rows" are rows_of_matrices(). Their momentum is exp_avg; they have no exp_avg_sq."""

    @torch.no_grad()
    def step(self, closure=None):
        hidden = [(group, p) for group in self.param_groups if group.get("muon_lr_ratio") for p in group["params"]
                  if p.grad is not None]
        gradients = [p.grad for _, p in hidden]
        for group, p in hidden:
            self._muon(group, p)
            p.grad = None                                                # AdamW passes over it
        super().step(closure)
        for (_, p), grad in zip(hidden, gradients, strict=True):
            p.grad = grad

    def _muon(self, group, p):
        m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
        m.lerp_(p.grad, 1 - MOMENTUM)
        lr, update = group["lr"] * group["muon_lr_ratio"], p.grad.lerp(m, MOMENTUM)
        p.mul_(1 - lr * group["weight_decay"])
        for weight, along in zip(p.split(group["rows"], dim=-2), update.split(group["rows"], dim=-2), strict=True):
            weight.sub_(orthogonalised(along), alpha=lr * max(1, weight.shape[-2] / weight.shape[-1]) ** 0.5)
