"""What a model looks like: ModelConfig, the named presets, and what follows from them by arithmetic alone
(the shape of every parameter, their number, the FLOPs of a token).

`parameter_shapes` is the one list of the model's parameters: model.py makes its weights from it, files/ checks files
against it, and `num_parameters` adds it up, so a 70-billion-parameter model is counted without being allocated.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace

CHOICES = {"norm": ("layernorm", "rmsnorm"), "position": ("learned", "rope"), "activation": ("gelu", "swiglu"),
           "gate": ("softmax", "sigmoid")}

OF_EXPERTS = ("n_expert_active", "n_expert_shared", "n_dense_layers", "gate", "normalize_gates", "route_scale",
              "n_expert_group", "n_expert_group_active", "router_bias", "router_bias_rate", "router_aux_loss",
              "router_z_loss")     # fields that mean nothing without n_expert (expert_inner is n_inner there)


def is_trained(name: str) -> bool:
    """Whether gradients move the parameter of that name: all but the bias of a router, which the load moves."""
    return not name.endswith(".router.bias")


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
    share_layers: bool = False          # one block's parameters, used n_layer times (ALBERT, arXiv:1909.11942)

    # multi-head latent attention (DeepSeek-V2, arXiv:2405.04434; latent_attention.py): a token's keys and values of
    # all heads are made from a small latent vector, which is all that has to be kept of it
    kv_lora_rank: int = 0               # numbers in the latent of keys and values; 0: ordinary attention
    q_lora_rank: int = 0                # numbers in a latent of the queries; 0: they are projected directly
    qk_nope_head_dim: int = 0           # size of the part of a query's or key's head without position ...
    qk_rope_head_dim: int = 0           # ... and of the part with rope, whose keys all heads share
    v_head_dim: int = 0                 # size of a value's head

    # mixture of experts: a router sends each token through a few of many MLPs, swiglu without biases (ops/numpy_moe.py)
    n_expert: int = 0                   # experts in a layer; 0: one dense MLP
    n_expert_active: int = 2            # how many of them a token goes through
    n_expert_shared: int = 0            # experts beside them that every token goes through
    expert_inner: int | None = None     # width of an expert's hidden layer; None: n_inner
    n_dense_layers: int = 0             # so many first layers keep a dense MLP
    gate: str = "softmax"               # what makes scores of the router's logits; or "sigmoid"
    normalize_gates: bool = True        # the gates of a token's experts add up to 1, before route_scale
    route_scale: float = 1.0            # what the gates are multiplied by
    n_expert_group: int = 1             # a token first chooses groups of experts, by their two best (DeepSeek-V3), ...
    n_expert_group_active: int = 1      # ... so many, and its experts from these
    router_bias: bool = False           # added to the scores for the choice alone, moved by the load (aux-loss-free)
    router_bias_rate: float = 0.001     # how far a step of training moves it
    router_aux_loss: float = 0.0        # coefficient of the auxiliary loss that balances the load (Switch Transformer)
    router_z_loss: float = 0.0          # coefficient of the loss that keeps the router's logits small (ST-MoE)

    def __post_init__(self):
        self._check_integers("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.n_inner is None:
            object.__setattr__(self, "n_inner", 4 * self.n_embd)
        if self.expert_inner is None:
            object.__setattr__(self, "expert_inner", self.n_inner)
        self._check_integers("n_kv_head", "n_inner", "expert_inner")
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"ModelConfig: {field} is {getattr(self, field)!r}, must be {' or '.join(choices)}")
        for field in ("bias", "tied", "causal", "share_layers", "normalize_gates", "router_bias"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"ModelConfig: {field} is {getattr(self, field)!r}, must be True or False")
        for field in ("norm_eps", "rope_base", "route_scale"):
            if not self._is_positive(field):
                raise ValueError(f"ModelConfig: {field} is {getattr(self, field)!r}, must be a positive number")
        for field in ("router_bias_rate", "router_aux_loss", "router_z_loss"):
            if getattr(self, field) != 0 and not self._is_positive(field):
                raise ValueError(f"ModelConfig: {field} is {getattr(self, field)!r}, must be a number of 0 or more")
        if self.n_embd % self.n_head:
            raise ValueError(f"ModelConfig: n_embd is {self.n_embd}, must be a multiple of n_head, {self.n_head}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"ModelConfig: n_kv_head is {self.n_kv_head}, must divide n_head, {self.n_head}")
        if self.position == "rope" and not self.kv_lora_rank and self.head_size % 2:
            raise ValueError(f"ModelConfig: the head size n_embd / n_head is {self.head_size}, must be even for rope")
        self._check_latent()
        self._check_experts()

    def _check_latent(self):
        sizes = "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"
        self._check_integers("kv_lora_rank", "q_lora_rank", *sizes, least=0)
        if not self.kv_lora_rank:
            for field in ("q_lora_rank", *sizes):
                if getattr(self, field):
                    raise ValueError(f"ModelConfig: {field} is {getattr(self, field)}, must be 0 without kv_lora_rank")
            return
        self._check_integers(*sizes)
        fits = {"position": (self.position == "rope", "'rope' with kv_lora_rank"),
                "n_kv_head": (self.n_kv_head == self.n_head, f"n_head, {self.n_head}, with kv_lora_rank"),
                "qk_rope_head_dim": (self.qk_rope_head_dim % 2 == 0, "even"),
                "v_head_dim": (self.v_head_dim <= self.head_size,
                               f"at most qk_nope_head_dim + qk_rope_head_dim, {self.head_size}")}
        for field, (holds, must_be) in fits.items():
            if not holds:
                raise ValueError(f"ModelConfig: {field} is {getattr(self, field)!r}, must be {must_be}")

    def _check_experts(self):
        self._check_integers("n_expert", "n_expert_shared", "n_dense_layers", least=0)
        self._check_integers("n_expert_active", "n_expert_group", "n_expert_group_active")
        if not self.n_expert:
            for field in OF_EXPERTS:
                value, default = getattr(self, field), type(self).__dataclass_fields__[field].default
                if value != default:
                    raise ValueError(f"ModelConfig: {field} is {value!r}, must be {default!r} without experts "
                                     "(n_expert is 0)")
            return
        E, k, groups, chosen = self.n_expert, self.n_expert_active, self.n_expert_group, self.n_expert_group_active
        fits = {
            "activation": (self.activation == "swiglu", "swiglu with experts"),
            "n_expert_active": (k <= E, f"at most n_expert, {E}"),
            "n_expert_group": (E % groups == 0 and (groups == 1 or E // groups >= 2),
                               f"a divisor of n_expert, {E}, that leaves 2 experts or more in a group"),
            "n_expert_group_active": (k <= chosen * (E // groups) and chosen <= groups,
                                      f"at most n_expert_group, {groups}, and enough for {k} active experts"),
            "n_dense_layers": (self.n_dense_layers < (1 if self.share_layers else self.n_layer),
                               "0 with share_layers" if self.share_layers else f"less than n_layer, {self.n_layer}"),
        }
        for field, (holds, must_be) in fits.items():
            if not holds:
                raise ValueError(f"ModelConfig: {field} is {getattr(self, field)!r}, must be {must_be}")

    def _check_integers(self, *names, least=1):
        for field in names:
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"ModelConfig: {field} is {value!r}, must be an integer of {least} or more")

    def _is_positive(self, field):
        value = getattr(self, field)
        return isinstance(value, (int, float)) and value is not True and 0 < value < math.inf

    @classmethod
    def preset(cls, name: str, **changes) -> ModelConfig:
        """One of PRESETS by name, with some fields changed: ModelConfig.preset("char", vocab_size=96). With
        n_expert=0, a preset of experts becomes a dense model of its n_inner."""
        if name not in PRESETS:
            raise ValueError(f"ModelConfig: no preset named {name!r}, there are {', '.join(PRESETS)}")
        fields = PRESETS[name]
        if changes.get("n_expert") == 0:
            fields = {field: value for field, value in fields.items() if field not in (*OF_EXPERTS, "expert_inner")}
        return cls(**{**fields, **changes})

    def with_vocab_size(self, new_num_tokens: int) -> ModelConfig:
        """The same model with another number of tokens. ValueError for what is none."""
        try:
            size = new_num_tokens if isinstance(new_num_tokens, bool) else operator.index(new_num_tokens)
            return replace(self, vocab_size=size)
        except (TypeError, ValueError):
            raise ValueError(f"resize_token_embeddings: new_num_tokens is {new_num_tokens!r}, must be an integer of 1 "
                             "or more") from None

    @property
    def head_size(self) -> int:
        """Numbers in a head of queries and keys, and of values unless v_head_dim says otherwise."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.kv_lora_rank else self.n_embd // self.n_head

    @property
    def rope_size(self) -> int:
        """How many of them rope turns."""
        return self.qk_rope_head_dim or self.head_size

    @property
    def v_head_size(self) -> int:
        return self.v_head_dim or self.head_size

    def stored_name(self, name: str) -> str:
        """The name in parameter_shapes of a part of layer i: with share_layers, that of layer 0."""
        if not self.share_layers or not name.startswith("h."):
            return name
        return "h.0." + name.split(".", 2)[2]

    def has_experts(self, i: int) -> bool:
        """Whether the MLP of layer i is a mixture of experts."""
        return self.n_expert > 0 and i >= self.n_dense_layers

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """{name: shape} of every parameter, in the order of the forward pass. Linear weights are (out, in); those of
        the experts lie in one array, (expert, out, in)."""
        C, E, F = self.n_embd, self.n_expert, self.expert_inner
        qkv = (self.n_head + 2 * self.n_kv_head) * self.head_size     # rows: the query heads, then keys', then values'
        shapes = {}

        def linear(name, n_out, n_in, bias=self.bias):
            shapes[f"{name}.weight"] = (n_out, n_in)
            if bias:
                shapes[f"{name}.bias"] = (n_out,)

        def norm(name):
            shapes[f"{name}.weight"] = (C,)
            if self.bias and self.norm == "layernorm":
                shapes[f"{name}.bias"] = (C,)

        def mlp(name, n_inner, bias):
            if self.activation == "swiglu":
                linear(f"{name}.gate", n_inner, C, bias)
            linear(f"{name}.up", n_inner, C, bias)
            linear(f"{name}.down", C, n_inner, bias)

        def latent_attention(name):
            H, latent = self.n_head, self.kv_lora_rank
            if self.q_lora_rank:
                linear(f"{name}.q_a", self.q_lora_rank, C)
                shapes[f"{name}.q_norm.weight"] = (self.q_lora_rank,)
            linear(f"{name}.q_b", H * self.head_size, self.q_lora_rank or C)
            linear(f"{name}.kv_a", latent + self.qk_rope_head_dim, C)
            shapes[f"{name}.kv_norm.weight"] = (latent,)
            linear(f"{name}.kv_b", H * (self.qk_nope_head_dim + self.v_head_dim), latent)

        def experts(name):
            linear(f"{name}.router", E, C, self.router_bias)
            for part, matrix in (("gate", (F, C)), ("up", (F, C)), ("down", (C, F))):
                shapes[f"{name}.experts.{part}.weight"] = (E, *matrix)
            if self.n_expert_shared:
                mlp(f"{name}.shared", self.n_expert_shared * F, bias=False)

        shapes["wte"] = (self.vocab_size, C)
        if self.position == "learned":
            shapes["wpe"] = (self.block_size, C)
        for i in range(1 if self.share_layers else self.n_layer):
            norm(f"h.{i}.norm1")
            if self.kv_lora_rank:
                latent_attention(f"h.{i}.attn")
            else:
                linear(f"h.{i}.attn.qkv", qkv, C)
            linear(f"h.{i}.attn.proj", C, self.n_head * self.v_head_size)
            norm(f"h.{i}.norm2")
            if self.has_experts(i):
                experts(f"h.{i}.mlp")
            else:
                mlp(f"h.{i}.mlp", self.n_inner, self.bias)
        norm("norm")
        if not self.tied:
            shapes["head.weight"] = (self.vocab_size, C)
        return shapes

    def num_parameters(self) -> int:
        """The exact number of parameters. A tied head counts once, and so does a layer that is used many times."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def num_active_parameters(self) -> int:
        """The number of parameters that one token meets: all but those of the experts that it does not go through."""
        return sum(self.num_met(name, shape) for name, shape in self.parameter_shapes().items())

    def flops_per_token(self, T: int | None = None) -> int:
        """FLOPs of the matrix products of one forward pass, per token of a text of T (block_size) tokens: the sum of
        forward_flops. The backward pass takes twice as many."""
        return sum(self.forward_flops(T).values())

    def forward_flops(self, T: int | None = None) -> dict[str, int]:
        """{part: FLOPs per token} of one forward pass over texts of T (block_size) tokens, all layers together: two per
        weight that a token meets, every time that it meets it, in parts with the names of the parameters ("attn.qkv",
        "mlp.up", "head"); 2 T for each number of a head of keys in "scores" (q k^T), and of values in "reduce" (p v).
        Counted as is usual, without the half that a causal mask saves."""
        T, times, parts = T or self.block_size, self.n_layer if self.share_layers else 1, {}
        for name, shape in self.parameter_shapes().items():
            if name.startswith("h.") and len(shape) > 1:
                part = name.split(".", 2)[2].removesuffix(".weight")
                parts[part] = parts.get(part, 0) + 2 * times * self.num_met(name, shape)
        parts["scores"] = 2 * T * self.n_head * self.head_size * self.n_layer
        parts["reduce"] = 2 * T * self.n_head * self.v_head_size * self.n_layer
        parts["head"] = 2 * self.vocab_size * self.n_embd
        return parts

    def num_met(self, name: str, shape: tuple[int, ...]) -> int:
        """How many elements of the parameter of that name and shape one token meets."""
        if ".experts." in name:
            shape = self.n_expert_active, *shape[1:]
        return math.prod(shape)


GPT2 = dict(vocab_size=50257, block_size=1024)
GPT3 = dict(vocab_size=50257, block_size=2048)
LLAMA = dict(norm="rmsnorm", position="rope", activation="swiglu", bias=False, tied=False)
LLAMA2 = dict(LLAMA, vocab_size=32000, block_size=4096)
LLAMA3 = dict(LLAMA, vocab_size=128256, block_size=8192, rope_base=500000.0)
MIXTRAL = dict(LLAMA, vocab_size=32000, rope_base=1e6, n_kv_head=8, n_expert=8, n_expert_active=2)
DEEPSEEK = dict(LLAMA, norm_eps=1e-6, block_size=4096, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
                v_head_dim=128)
DEEPSEEK_V2 = dict(DEEPSEEK, vocab_size=102400, n_expert_active=6, n_expert_shared=2, n_dense_layers=1,
                   normalize_gates=False)
DEEPSEEK_V3_EXPERTS = dict(n_expert=256, n_expert_active=8, n_expert_shared=1, expert_inner=2048, n_dense_layers=3,
                           gate="sigmoid", route_scale=2.5, n_expert_group=8, n_expert_group_active=4, router_bias=True)

PRESETS = {
    # nanoGPT's setting for CPUs: characters of Shakespeare
    "char": dict(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128, bias=False),
    "llama-char": dict(LLAMA, vocab_size=65, block_size=64, n_layer=4, n_head=4, n_kv_head=2, n_embd=128, n_inner=344),
    # llama-char with 8 experts, of which a token goes through 2 of half its MLP's width: as many active parameters
    "moe-char": dict(LLAMA, vocab_size=65, block_size=64, n_layer=4, n_head=4, n_kv_head=2, n_embd=128, n_expert=8,
                     expert_inner=172, gate="sigmoid", router_bias=True),
    # what `minigpt demo` trains
    "demo": dict(vocab_size=2048, block_size=128, n_layer=4, n_head=4, n_embd=128),
    "gpt2": dict(GPT2, n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(GPT2, n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(GPT2, n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(GPT2, n_layer=48, n_head=25, n_embd=1600),
    # Brown et al. 2020, table 2.1, but XL with 16 heads and 13B 5120 wide: what is printed does not multiply out
    "gpt3-small": dict(GPT3, n_layer=12, n_head=12, n_embd=768),
    "gpt3-medium": dict(GPT3, n_layer=24, n_head=16, n_embd=1024),
    "gpt3-large": dict(GPT3, n_layer=24, n_head=16, n_embd=1536),
    "gpt3-xl": dict(GPT3, n_layer=24, n_head=16, n_embd=2048),
    "gpt3-2.7b": dict(GPT3, n_layer=32, n_head=32, n_embd=2560),
    "gpt3-6.7b": dict(GPT3, n_layer=32, n_head=32, n_embd=4096),
    "gpt3-13b": dict(GPT3, n_layer=40, n_head=40, n_embd=5120),
    "gpt3-175b": dict(GPT3, n_layer=96, n_head=96, n_embd=12288),
    "llama2-7b": dict(LLAMA2, n_layer=32, n_head=32, n_embd=4096, n_inner=11008),
    "llama2-13b": dict(LLAMA2, n_layer=40, n_head=40, n_embd=5120, n_inner=13824),
    "llama2-70b": dict(LLAMA2, n_layer=80, n_head=64, n_kv_head=8, n_embd=8192, n_inner=28672),
    "llama3-8b": dict(LLAMA3, n_layer=32, n_head=32, n_kv_head=8, n_embd=4096, n_inner=14336),
    "llama3-70b": dict(LLAMA3, n_layer=80, n_head=64, n_kv_head=8, n_embd=8192, n_inner=28672),
    "llama3-405b": dict(LLAMA3, n_layer=126, n_head=128, n_kv_head=8, n_embd=16384, n_inner=53248),
    "mistral-7b": dict(LLAMA, vocab_size=32000, block_size=8192, n_layer=32, n_head=32, n_kv_head=8, n_embd=4096,
                       n_inner=14336),
    "smollm2-135m": dict(LLAMA, vocab_size=49152, block_size=8192, rope_base=100000.0, tied=True, n_layer=30, n_head=9,
                         n_kv_head=3, n_embd=576, n_inner=1536),
    "mixtral-8x7b": dict(MIXTRAL, block_size=32768, n_layer=32, n_head=32, n_embd=4096, n_inner=14336),
    "mixtral-8x22b": dict(MIXTRAL, block_size=65536, n_layer=56, n_head=48, n_embd=6144, n_inner=16384),
    "deepseek-v2-lite": dict(DEEPSEEK_V2, n_layer=27, n_head=16, n_embd=2048, n_inner=10944, n_expert=64,
                             expert_inner=1408),
    # its shape; groups are chosen as in V3, by the sum of their two best scores, where V2 took the best one's
    "deepseek-v2": dict(DEEPSEEK_V2, n_layer=60, n_head=128, n_embd=5120, n_inner=12288, q_lora_rank=1536, n_expert=160,
                        expert_inner=1536, route_scale=16.0, n_expert_group=8, n_expert_group_active=3),
    "deepseek-v3": dict(DEEPSEEK, **DEEPSEEK_V3_EXPERTS, vocab_size=129280, n_layer=61, n_head=128, n_embd=7168,
                        n_inner=18432, q_lora_rank=1536),
    # an example of a mixture of 1.8 T parameters, for the planner: the shape of no known model
    "moe-1.8t": dict(LLAMA3, n_layer=96, n_head=96, n_kv_head=8, n_embd=12288, n_inner=15616, n_expert=32,
                     n_expert_active=2),
}
