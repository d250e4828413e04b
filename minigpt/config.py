"""What a model looks like: ModelConfig, the named presets, and what follows from them by arithmetic alone
(the shape of every parameter, their number, the FLOPs of a token).

`parameter_shapes` is the one list of the model's parameters: model.py makes its weights from it, files/ checks files
against it, and `num_parameters` adds it up, so a 70-billion-parameter model is counted without being allocated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CHOICES = {"norm": ("layernorm", "rmsnorm"), "position": ("learned", "rope"), "activation": ("gelu", "swiglu")}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT. The defaults are GPT-2 (124M); norm="rmsnorm", position="rope", activation="swiglu",
    bias=False, tied=False together are Llama. ValueError names a field that does not fit."""

    vocab_size: int = 50257
    block_size: int = 1024              # the longest text the model sees at once, in tokens
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_kv_head: int | None = None        # heads of keys and values, shared by groups of query heads; None: n_head
    n_inner: int | None = None          # width of the MLP's hidden layer; None: 4 * n_embd
    norm: str = "layernorm"             # or "rmsnorm"
    norm_eps: float = 1e-5
    position: str = "learned"           # or "rope"
    rope_base: float = 10000.0
    activation: str = "gelu"            # or "swiglu"
    bias: bool = True                   # in the linear layers and the layernorms (an rmsnorm has none)
    tied: bool = True                   # the output head is the token embedding
    causal: bool = True                 # False: every token sees the whole text (masked language modelling)

    def __post_init__(self):
        self._check_integers("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.n_inner is None:
            object.__setattr__(self, "n_inner", 4 * self.n_embd)
        self._check_integers("n_kv_head", "n_inner")
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"ModelConfig: {field} is {getattr(self, field)!r}, must be {' or '.join(choices)}")
        for field in ("bias", "tied", "causal"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"ModelConfig: {field} is {getattr(self, field)!r}, must be True or False")
        for field in ("norm_eps", "rope_base"):
            value = getattr(self, field)
            if not isinstance(value, (int, float)) or value is True or not 0 < value < math.inf:
                raise ValueError(f"ModelConfig: {field} is {value!r}, must be a positive number")
        if self.n_embd % self.n_head:
            raise ValueError(f"ModelConfig: n_embd is {self.n_embd}, must be a multiple of n_head, {self.n_head}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"ModelConfig: n_kv_head is {self.n_kv_head}, must divide n_head, {self.n_head}")
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(f"ModelConfig: the head size n_embd / n_head is {self.head_size}, must be even for rope")

    def _check_integers(self, *names):
        for field in names:
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"ModelConfig: {field} is {value!r}, must be an integer of 1 or more")

    @classmethod
    def preset(cls, name: str, **changes) -> ModelConfig:
        """One of PRESETS by name, with some fields changed: ModelConfig.preset("char", vocab_size=96)."""
        if name not in PRESETS:
            raise ValueError(f"ModelConfig: no preset named {name!r}, there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """{name: shape} of every parameter, in the order of the forward pass. Linear weights are (out, in)."""
        C, F = self.n_embd, self.n_inner
        qkv = (self.n_head + 2 * self.n_kv_head) * self.head_size     # rows: the query heads, then keys', then values'
        shapes = {}

        def linear(name, n_out, n_in):
            shapes[f"{name}.weight"] = (n_out, n_in)
            if self.bias:
                shapes[f"{name}.bias"] = (n_out,)

        def norm(name):
            shapes[f"{name}.weight"] = (C,)
            if self.bias and self.norm == "layernorm":
                shapes[f"{name}.bias"] = (C,)

        shapes["wte"] = (self.vocab_size, C)
        if self.position == "learned":
            shapes["wpe"] = (self.block_size, C)
        for i in range(self.n_layer):
            norm(f"h.{i}.norm1")
            linear(f"h.{i}.attn.qkv", qkv, C)
            linear(f"h.{i}.attn.proj", C, C)
            norm(f"h.{i}.norm2")
            if self.activation == "swiglu":
                linear(f"h.{i}.mlp.gate", F, C)
            linear(f"h.{i}.mlp.up", F, C)
            linear(f"h.{i}.mlp.down", C, F)
        norm("norm")
        if not self.tied:
            shapes["head.weight"] = (self.vocab_size, C)
        return shapes

    def num_parameters(self) -> int:
        """The exact number of parameters. A tied head counts once."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def flops_per_token(self, T: int | None = None) -> int:
        """FLOPs of the matrix products of one forward pass, per token of a text of T (block_size) tokens: two per
        weight, and 4 T C a layer for q k^T and p v. Counted as is usual, without the half that a causal mask saves.
        The backward pass takes twice as many."""
        matrices = [shape for name, shape in self.parameter_shapes().items() if len(shape) == 2 and name != "wpe"]
        weights = sum(math.prod(shape) for shape in matrices)
        if not self.tied:
            weights -= self.vocab_size * self.n_embd                  # wte, where it is looked up and not multiplied
        return 2 * weights + 4 * (T or self.block_size) * self.n_embd * self.n_layer


GPT2 = dict(vocab_size=50257, block_size=1024)
LLAMA = dict(norm="rmsnorm", position="rope", activation="swiglu", bias=False, tied=False)
LLAMA2 = dict(LLAMA, vocab_size=32000, block_size=4096)
LLAMA3 = dict(LLAMA, vocab_size=128256, block_size=8192, rope_base=500000.0)

PRESETS = {
    # nanoGPT's setting for CPUs: characters of Shakespeare
    "char": dict(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128, bias=False),
    "llama-char": dict(LLAMA, vocab_size=65, block_size=64, n_layer=4, n_head=4, n_kv_head=2, n_embd=128, n_inner=344),
    # what `minigpt demo` trains
    "demo": dict(vocab_size=2048, block_size=128, n_layer=4, n_head=4, n_embd=128),
    "gpt2": dict(GPT2, n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(GPT2, n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(GPT2, n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(GPT2, n_layer=48, n_head=25, n_embd=1600),
    "llama2-7b": dict(LLAMA2, n_layer=32, n_head=32, n_embd=4096, n_inner=11008),
    "llama2-13b": dict(LLAMA2, n_layer=40, n_head=40, n_embd=5120, n_inner=13824),
    "llama2-70b": dict(LLAMA2, n_layer=80, n_head=64, n_kv_head=8, n_embd=8192, n_inner=28672),
    "llama3-8b": dict(LLAMA3, n_layer=32, n_head=32, n_kv_head=8, n_embd=4096, n_inner=14336),
    "llama3-70b": dict(LLAMA3, n_layer=80, n_head=64, n_kv_head=8, n_embd=8192, n_inner=28672),
}
