"""The twin's multi-head latent attention: the forward half of ../latent_attention.py, which says what it is, as a torch
module. Shapes are those there: D = N + R numbers in a head of queries and keys, V in one of values, L in the latent."""

import torch
from torch import nn
from torch.nn import functional as F


class LatentAttention(nn.Module):
    """x (B, T, C) -> branch (B, T, C)."""

    def __init__(self, config, ops):
        super().__init__()
        self.config, self.ops = config, ops
        C, H, D, L, bias = config.n_embd, config.n_head, config.head_size, config.kv_lora_rank, config.bias
        if config.q_lora_rank:
            self.q_a, self.q_norm = nn.Linear(C, config.q_lora_rank, bias=bias), LatentNorm(config.q_lora_rank)
        self.q_b = nn.Linear(config.q_lora_rank or C, H * D, bias=bias)
        self.kv_a, self.kv_norm = nn.Linear(C, L + config.qk_rope_head_dim, bias=bias), LatentNorm(L)
        self.kv_b = nn.Linear(L, H * (config.qk_nope_head_dim + config.v_head_dim), bias=bias)
        self.proj = nn.Linear(H * config.v_head_dim, C, bias=bias)

    def forward(self, x, angles, causal):
        config, ops, eps = self.config, self.ops, self.config.norm_eps
        N, R, V, H = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim, config.n_head
        low = ops.rmsnorm(self.q_a(x), self.q_norm.weight, eps) if config.q_lora_rank else x        # (B, T, Lq | C)
        q, q_rope = _heads(self.q_b(low), H).split((N, R), dim=-1)                                  # (B, H, T, N | R)
        latent, k_rope = self.kv_a(x).split((config.kv_lora_rank, R), dim=-1)                       # (B, T, L | R)
        k_rope = ops.rope(k_rope[:, None].contiguous(), *angles)                                    # (B, 1, T, R)
        latent = ops.rmsnorm(latent.contiguous(), self.kv_norm.weight, eps)                         # (B, T, L)
        k, v = _heads(self.kv_b(latent), H).split((N, V), dim=-1)                                   # (B, H, T, N | V)
        q = torch.cat([q, ops.rope(q_rope.contiguous(), *angles)], dim=-1)                          # (B, H, T, D)
        k = torch.cat([k, k_rope.expand(-1, H, -1, -1)], dim=-1)                                    # (B, H, T, D)
        out = ops.attention(q, k, F.pad(v, (0, N + R - V)), causal)[..., :V]                        # (B, H, T, V)
        return self.proj(out.transpose(1, 2).flatten(2))                                            # (B, T, C)


class LatentNorm(nn.Module):
    """Holds the weight of a latent's rmsnorm."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))


def _heads(x, n):
    """x (B, T, n D) as heads, (B, n, T, D)."""
    return x.unflatten(-1, (n, -1)).transpose(1, 2)
