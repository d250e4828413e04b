"""The peer of `minigpt bench train`: the same GPT as a torch module, written as one writes it in torch, with the fused
attention, the fused AdamW, and the head tied to the embedding. Imported only where torch is installed."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        C, bias = config.n_embd, config.bias
        self.n_head = config.n_head
        self.norm1, self.norm2 = nn.LayerNorm(C, bias=bias), nn.LayerNorm(C, bias=bias)
        self.qkv, self.proj = nn.Linear(C, 3 * C, bias=bias), nn.Linear(C, C, bias=bias)
        self.up, self.down = nn.Linear(C, config.n_inner, bias=bias), nn.Linear(config.n_inner, C, bias=bias)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (a.view(B, T, self.n_head, -1).transpose(1, 2) for a in self.qkv(self.norm1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class NanoGPT(nn.Module):
    """A GPT-2 of the shape of a ModelConfig, holding the weights of a minigpt.GPT (copies of `params`)."""

    def __init__(self, config, params):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        own = dict(self.named_parameters())
        renamed = {name.replace("attn.", "").replace("mlp.", ""): array for name, array in params.items()}
        renamed |= {f"{name}.weight": renamed.pop(name) for name in ("wte", "wpe")}
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(torch.from_numpy(renamed.pop(name)))
        assert not renamed, f"weights without a place: {sorted(renamed)}"

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        logits = F.linear(self.norm(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    def optimizer(self, learning_rate, beta2=0.95):
        """AdamW with decay on the matrices only, as GPTs are trained."""
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        vectors = [p for p in self.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=True)
