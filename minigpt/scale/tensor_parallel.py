"""Tensor parallelism as in Megatron-LM (arXiv:1909.08053, section 3): each of n ranks has 1/n of the heads and 1/n of
the MLP's columns of every layer. Two operators, each the other's transpose, make the whole of it:

    f, before a branch      forward: nothing                      backward: adds up the ranks' gradients
    g, behind a branch      forward: adds up the ranks' parts     backward: nothing

so a layer costs two all-reduces forward and two backward. Between f and g every rank computes with its own heads or
columns; outside, all ranks compute the same. Embeddings, norms, the head and the loss are whole on every rank: cutting
the vocabulary would save memory, and cost an uneven cut and a second form of the loss.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


class Copy(torch.autograd.Function):
    """f: x -> x; the gradient is the sum over the group's ranks."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx):
        return all_reduced(dx, ctx.group), None


class Sum(torch.autograd.Function):
    """g: x -> the sum over the group's ranks; the gradient passes."""

    @staticmethod
    def forward(ctx, x, group):
        return all_reduced(x, group)

    @staticmethod
    def backward(ctx, dx):
        return dx, None


def all_reduced(x, group):
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=group)
    return x


class RowParallel(nn.Module):
    """A linear layer whose input is cut: every rank has its columns of the weight, and all have the whole bias."""

    def __init__(self, linear, group):
        super().__init__()
        self.weight, self.bias, self.group = linear.weight, linear.bias, group

    def forward(self, x):
        y = Sum.apply(F.linear(x, self.weight), self.group)
        return y if self.bias is None else y + self.bias


def check(config, tp):
    """ValueError where the model cannot be cut into tp parts."""
    for name in ("n_head", "n_kv_head", "n_inner"):
        if getattr(config, name) % tp:
            raise ValueError(f"parallel is tp={tp}, which must divide {name}, {getattr(config, name)}")
    if config.n_expert or config.kv_lora_rank:
        what = "a mixture of experts (take ep=N)" if config.n_expert else "latent attention"
        raise ValueError(f"parallel is tp={tp}, but there is no tensor parallelism for {what}")


def wire(model, group):
    """Puts f and g around the branches of a model whose parameters are cut."""
    for layer in model.h:
        layer.attn.heads = [n // group.size() for n in layer.attn.heads]
        layer.attn.proj, layer.mlp.down = RowParallel(layer.attn.proj, group), RowParallel(layer.mlp.down, group)
        for branch in (layer.attn, layer.mlp):
            branch.register_forward_pre_hook(lambda _, inputs: (Copy.apply(inputs[0], group), *inputs[1:]))
