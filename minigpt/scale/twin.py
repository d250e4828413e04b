"""The twin: the GPT of model.py as a torch module, with the same config, the same names of parameters and the same
numbers. torch brings what model.py has no use for: autograd, autocast, torch.compile, GPUs and torch.distributed.

Read it beside model.py: a module here is a pair of methods there, and only the forward half is left. Norms, rope,
activations, attention and loss are this project's kernels as operators of torch (ops/torch_ops.py), or, with
kernels="torch", torch's own under the same names (torch_kernels.py). Matrix products are torch's in both.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..config import ModelConfig
from ..model import GPT, checked_params, random_params
from ..ops import check, torch_ops
from ..ops.numpy_ops import rope_tables
from . import torch_kernels
from .latent_attention import LatentAttention
from .moe import Experts

KERNELS = {"minigpt": torch_ops, "torch": torch_kernels}


class TorchGPT(nn.Module):
    """A GPT of the shape `config` as a torch module, computed by `kernels`, "minigpt" or "torch".

    Its state_dict() has the names and shapes of config.parameter_shapes(). The weights are those that GPT(config,
    seed=seed) starts from, bit for bit, or the arrays given as `params`, whose memory is shared and not copied.
    With gradient_checkpointing = True a layer keeps only its input, and is computed once more for its gradients.
    """

    def __init__(self, config: ModelConfig, kernels: str = "minigpt", seed: int = 0,
                 params: dict[str, np.ndarray] | None = None):
        super().__init__()
        if not isinstance(config, ModelConfig):
            raise TypeError(f"TorchGPT: config is {config!r}, must be a ModelConfig")
        if kernels not in KERNELS:
            raise ValueError(f"TorchGPT: kernels is {kernels!r}, must be {' or '.join(KERNELS)}")
        self.config, self.kernels = config, kernels
        self.gradient_checkpointing = False
        self.eos_token_id = None            # where generate() ends a text; from_pretrained sets it
        shapes, ops = config.parameter_shapes(), KERNELS[kernels]
        with torch.device("meta"):                                        # places without memory: the arrays are it
            self.wte = nn.Parameter(torch.empty(shapes["wte"]))                                     # (V, C)
            if config.position == "learned":
                self.wpe = nn.Parameter(torch.empty(shapes["wpe"]))                                 # (P, C)
            layers = {name.split(".")[1] for name in shapes if name.startswith("h.")}
            self.h = nn.ModuleList(Block(config, ops, i) for i in range(len(layers)))
            self.norm = Norm(config, ops)
            if not config.tied:
                self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        arrays = random_params(config, seed) if params is None else checked_params(config, params)
        self.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, assign=True)
        self._make_rope_tables()

    def num_parameters(self) -> int:
        return self.config.num_parameters()

    @property
    def params(self) -> dict[str, np.ndarray]:
        """{name: array}, as GPT.params: the weights' own memory, or, from a GPU or of 16 bits, copies in float32."""
        return {name: as_array(tensor) for name, tensor in self.state_dict().items()}

    @property
    def dtype(self):
        return self.wte.dtype

    @property
    def device(self):
        return self.wte.device

    def resize_token_embeddings(self, new_num_tokens: int):
        """As GPT.resize_token_embeddings; returns wte, (new_num_tokens, C)."""
        config, resized = self.config.with_vocab_size(new_num_tokens), []
        for owner, name in ((self, "wte"), *([] if self.config.tied else [(self.head, "weight")])):
            old = getattr(owner, name).detach()                                                     # (V, C)
            new = old.mean(dim=0).repeat(config.vocab_size, 1)
            new[:len(old)] = old[:len(new)]
            resized.append((owner, name, nn.Parameter(new)))
        for owner, name, new in resized:
            setattr(owner, name, new)
        self.config = config
        return self.wte

    def extra_repr(self):
        return f"{self.config}, kernels={self.kernels!r}"

    # -----------------------------------------------------------------------------------------------------------
    # the whole model

    def forward(self, tokens, targets=None, last=False, reduction="mean"):
        """Without targets: logits (B, T, V); with last=True those of the last position only, (B, 1, V). With targets:
        the mean loss over the targets that are not -100 (0 if none is counted), or, with reduction="none", the loss of
        every token, (B, T), 0 where the target is -100. tokens and targets: (B, T) integers, tensors or arrays, as in
        GPT.forward."""
        y = self._trunk_forward(self.checked_ids("tokens", tokens))                                 # (B, T, C)
        if targets is None:
            return self._head_forward(y[:, -1:] if last else y)                                     # (B, T | 1, V)
        targets = self.checked_ids("targets", targets)
        if targets.shape != y.shape[:2]:
            raise ValueError(f"TorchGPT.forward: targets has shape {tuple(targets.shape)}, must be that of tokens, "
                             f"{tuple(y.shape[:2])}")
        losses = KERNELS[self.kernels].cross_entropy(self._head_forward(y), targets)                # (B, T)
        return losses if reduction == "none" else losses.sum() / (targets != -100).sum().clamp(min=1)

    def _trunk_forward(self, tokens):
        """tokens (B, T) -> the output of the last norm (B, T, C)."""
        T = tokens.shape[1]
        h = F.embedding(tokens, self.wte)                                                           # (B, T, C)
        if self.config.position == "learned":
            h = h + self.wpe[:T]
        branch, angles = None, None                                                                 # (B, T, C)
        if self.config.position == "rope":
            angles = self.cos[:T], self.sin[:T]                                                     # (T, D/2)
        for i in range(self.config.n_layer):
            layer = self.h[i % len(self.h)]                               # one layer, again and again, or one each
            h, branch = layer(h, branch, angles, self.config.causal, self.gradient_checkpointing)
        return self.norm(h, branch)[1]

    def _head_forward(self, y):
        return F.linear(y, self.wte if self.config.tied else self.head.weight)                      # (B, T, V)

    def checked_ids(self, name, x):
        """tokens or targets, an array or a tensor, as a tensor beside the weights. The ids are looked at where they lie
        on the CPU; to look at those on a GPU would make it wait, and a compiled graph cannot."""
        x = x if isinstance(x, torch.Tensor) else np.asarray(x)
        if x.ndim != 2:
            raise ValueError(f"TorchGPT.forward: {name} has shape {tuple(x.shape)}, must be (B, T)")
        if x.shape[1] > self.config.block_size:
            raise ValueError(f"TorchGPT.forward: {name} has T = {x.shape[1]}, must be at most "
                             f"{self.config.block_size}: block_size")
        if torch.compiler.is_compiling() or isinstance(x, torch.Tensor) and x.device.type != "cpu":
            return x.to(self.device)
        check.integers("TorchGPT.forward", name, np.asarray(x))
        check.in_range("TorchGPT.forward", name, np.asarray(x), self.config.vocab_size,
                       allowed=-100 if name == "targets" else None)
        return torch.as_tensor(x, dtype=torch.int64, device=self.device)

    # -----------------------------------------------------------------------------------------------------------
    # rope's tables, which are no weights

    def _make_rope_tables(self):
        if self.config.position == "rope":
            tables = rope_tables(self.config.block_size, self.config.rope_size, self.config.rope_base, dtype=np.float64)
            for name, table in zip(("cos", "sin"), tables, strict=True):
                table = torch.from_numpy(table).to(self.device, self.dtype)                         # (P, D/2)
                self.register_buffer(name, table, persistent=False)

    def _apply(self, fn, recurse=True):
        """Behind .to(), .double(), .cuda(), .to_empty(): the tables are made anew, so that they are exact in the new
        dtype, and there after a start on the meta device."""
        super()._apply(fn, recurse)
        self._make_rope_tables()
        return self

    # -----------------------------------------------------------------------------------------------------------
    # other rooms of the house

    def over_ops(self, ops=None) -> GPT:
        """The same model over `ops` (see GPT). It shares the weights of a model in float32 or float64 on the CPU."""
        model = GPT(self.config, ops, params=self.params)
        model.eos_token_id = self.eos_token_id
        return model

    def generate(self, tokens, max_new_tokens: int, **options):
        """Continues a text; see minigpt.generate. Done by the model over `ops`, which has a cache for it."""
        return self.over_ops().generate(tokens, max_new_tokens, **options)

    def save_pretrained(self, directory, tokenizer=None):
        """Writes the model as GPT.save_pretrained does: GPT, TorchGPT and transformers open it alike."""
        from ..files import save_pretrained
        save_pretrained(self, directory, tokenizer)

    @classmethod
    def from_pretrained(cls, directory, kernels="minigpt") -> TorchGPT:
        """Reads a model that GPT, TorchGPT or transformers saved; see minigpt.files.load_pretrained."""
        from ..files import load_eos_token_id, load_pretrained
        config, params = load_pretrained(directory)
        model = cls(config, kernels, params=params)
        model.eos_token_id = load_eos_token_id(directory)
        return model


def best_device():
    """Where a model trains fastest here: a GPU where torch sees one (of several ranks, each its own), else "cpu"."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def as_array(tensor):
    """The array of a tensor, over the same memory where it is one of NumPy's types on the CPU."""
    x = tensor.detach().cpu()
    return (x.float() if x.dtype in torch_ops.SIXTEEN_BITS else x).numpy()


class Block(nn.Module):
    """One layer. h (B, T, C) is the residual stream, branch (B, T, C) what the layer before adds to it. With
    recompute=True nothing but these two is kept for the backward pass, which computes the layer again."""

    def __init__(self, config, ops, i):
        super().__init__()
        attention = LatentAttention if config.kv_lora_rank else Attention
        self.norm1, self.attn = Norm(config, ops), attention(config, ops)
        self.norm2 = Norm(config, ops)
        if config.has_experts(i):
            width = config.n_expert_shared * config.expert_inner
            self.mlp = Experts(config, ops, MLP(config, ops, width, bias=False) if width else None)
        else:
            self.mlp = MLP(config, ops, config.n_inner, config.bias)

    def forward(self, h, branch, angles, causal, recompute=False):
        if recompute and torch.is_grad_enabled():
            return checkpoint(self.forward, h, branch, angles, causal, use_reentrant=False)
        h, y = self.norm1(h, branch)
        branch = self.attn(y, angles, causal)
        h, y = self.norm2(h, branch)
        return h, self.mlp(y)


class Norm(nn.Module):
    """h and branch (B, T, C; no branch before the first norm) -> their sum h, and y = norm(h), (B, T, C) each."""

    def __init__(self, config, ops):
        super().__init__()
        self.kind, self.eps, self.ops = config.norm, config.norm_eps, ops
        self.weight = nn.Parameter(torch.empty(config.n_embd))                                      # (C,)
        has_bias = config.bias and config.norm == "layernorm"
        self.bias = nn.Parameter(torch.empty(config.n_embd)) if has_bias else None                  # (C,)

    def forward(self, h, branch):
        if self.kind == "rmsnorm":
            h = h if branch is None else h + branch
            return h, self.ops.rmsnorm(h, self.weight, self.eps)
        if branch is None:
            return h, self.ops.layernorm(h, self.weight, self.bias, self.eps)
        return self.ops.residual_layernorm(branch, h, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """x (B, T, C) -> branch (B, T, C)."""

    def __init__(self, config, ops):
        super().__init__()
        C, self.config, self.ops = config.n_embd, config, ops
        self.heads = [config.n_head, config.n_kv_head, config.n_kv_head]  # of q, k and v
        self.qkv = nn.Linear(C, (config.n_head + 2 * config.n_kv_head) * config.head_size, bias=config.bias)
        self.proj = nn.Linear(C, C, bias=config.bias)

    def forward(self, x, angles, causal):
        q, k, v = self._split_heads(self.qkv(x))                                                    # (B, H | Hkv, T, D)
        if angles is not None:
            q, k = self.ops.rope(q, *angles), self.ops.rope(k, *angles)
        out = self.ops.attention(q, k, v, causal)                                                   # (B, H, T, D)
        return self.proj(out.transpose(1, 2).flatten(2))                                            # (B, T, C)

    def _split_heads(self, qkv):
        """The views q (B, H, T, D), k and v (B, Hkv, T, D) of the packed projection (B, T, (H + 2 Hkv) D)."""
        heads = qkv.unflatten(-1, (-1, self.config.head_size)).transpose(1, 2)                      # (B, H+2Hkv, T, D)
        return heads.split(self.heads, dim=1)


class MLP(nn.Module):
    """x (B, T, C) -> branch (B, T, C)."""

    def __init__(self, config, ops, n_inner, bias):
        super().__init__()
        C, self.ops = config.n_embd, ops
        self.gate = nn.Linear(C, n_inner, bias=bias) if config.activation == "swiglu" else None
        self.up = nn.Linear(C, n_inner, bias=bias)
        self.down = nn.Linear(n_inner, C, bias=bias)

    def forward(self, x):
        up = self.up(x)                                                                             # (B, T, F)
        act = self.ops.gelu(up) if self.gate is None else self.ops.swiglu(self.gate(x), up)         # (B, T, F)
        return self.down(act)
