"""What the twin computes with when it is to be plain torch: the functions of minigpt.ops.torch_ops that a model needs,
under the same names and with the same arguments, by torch's own kernels. For comparison."""

import torch
from torch.nn import functional as F


def layernorm(x, weight, bias=None, eps=1e-5):
    """x (..., C), weight (C,), bias (C,) or None -> y (..., C)."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def rmsnorm(x, weight, eps=1e-5):
    """x (..., C), weight (C,) -> y (..., C)."""
    return F.rms_norm(x, weight.shape, weight, eps)


def residual_layernorm(x, residual, weight, bias=None, eps=1e-5):
    """h = x + residual, y = layernorm(h). x, residual (..., C) -> h (..., C), y (..., C)."""
    h = x + residual
    return h, layernorm(h, weight, bias, eps)


def gelu(x):
    """The tanh form. Any shape."""
    return F.gelu(x, approximate="tanh")


def swiglu(gate, up):
    """gate * sigmoid(gate) * up. gate, up (..., F) -> (..., F)."""
    return F.silu(gate) * up


def rope(x, cos, sin):
    """x (B, H, T, D), cos and sin (T, D/2) -> (B, H, T, D)."""
    a, b = x.chunk(2, dim=-1)                                                                       # (B, H, T, D/2)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attention(q, k, v, causal=True, scale=None):
    """q (B, H, Tq, D), k and v (B, Hkv, Tk, D) -> out (B, H, Tq, D). The causal mask is aligned bottom-right."""
    Tq, Tk = q.shape[2], k.shape[2]
    mask = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq) if causal and Tq != Tk else None
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal and Tq == Tk, scale=scale, enable_gqa=True)


def cross_entropy(logits, targets, ignore_index=-100):
    """logits (..., V), targets (...) integers -> the loss of each row (...), 0 where the target is ignore_index."""
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignore_index, reduction="none")
    return losses.view(targets.shape)
