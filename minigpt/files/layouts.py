"""The same model under other names: how transformers' GPT2LMHeadModel, LlamaForCausalLM and MixtralForCausalLM write
what `params` holds, and how their config.json says what ModelConfig says.

A layout maps every tensor in the file, without its prefix, to its place in the parameters: (name, rows, transposed).
`place` is the view of a parameter that corresponds to one tensor; it is written when loading and read when saving.
"""

from __future__ import annotations

from dataclasses import asdict, fields

from ..config import ModelConfig

ARCHITECTURE = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mixtral": "MixtralForCausalLM",
                "minigpt": "GPT"}
PREFIX = {"gpt2": "transformer.", "llama": "model.", "mixtral": "model.", "minigpt": ""}  # of every tensor but the head
IGNORED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")     # masks and tables that old files hold
HEAD = "lm_head.weight"
ALL = slice(None)

GPT2_LAYER = {"ln_1": "norm1", "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.proj",
              "ln_2": "norm2", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
LLAMA_LAYER = {"input_layernorm": "norm1", "self_attn.o_proj": "attn.proj", "post_attention_layernorm": "norm2",
               "mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down"}
MIXTRAL_EXPERT = {"w1": "gate", "w2": "down", "w3": "up"}
MIXTRAL = dict(bias=False, share_layers=False, n_expert_shared=0, n_dense_layers=0, gate="softmax",
               normalize_gates=True, route_scale=1.0, n_expert_group=1, router_bias=False)


def model_type(config: ModelConfig) -> str:
    """Whose layout fits: "gpt2", "llama", "mixtral", or our own, "minigpt", for every other mix of options."""
    if config.share_layers or config.kv_lora_rank:
        return "minigpt"
    options = config.norm, config.position, config.activation
    if config.n_expert:
        same = all(getattr(config, field) == value for field, value in MIXTRAL.items())
        same = same and config.expert_inner == config.n_inner               # the one width that its config.json has
        return "mixtral" if same and options == ("rmsnorm", "rope", "swiglu") else "minigpt"
    if options == ("layernorm", "learned", "gelu") and config.n_kv_head == config.n_head:
        return "gpt2"
    return "llama" if options == ("rmsnorm", "rope", "swiglu") else "minigpt"


def place(params, name, rows, transposed):
    part = params[name][rows]
    return part.T if transposed else part


def place_shape(shape, rows, transposed):
    """The shape of such a view of a parameter of that shape."""
    part = range(shape[0])[rows]
    shape = shape[1:] if isinstance(part, int) else (len(part), *shape[1:])                 # a matrix of one expert
    return shape[::-1] if transposed else shape


def layout(config: ModelConfig, kind: str) -> dict[str, tuple]:
    """{tensor: (parameter, rows or an expert's number, transposed)} for the layout of one model_type."""
    ours = config.parameter_shapes()
    if kind == "minigpt":
        return {name: (name, ALL, False) for name in ours}
    places = _gpt2_layout(config) if kind == "gpt2" else _llama_layout(config)
    if not config.tied:
        places[HEAD] = "head.weight", ALL, False
    return {tensor: place for tensor, place in places.items() if place[0] in ours}      # without biases that are not


def _gpt2_layout(config):
    """GPT-2's linear layers (Conv1D) hold their weights as (in, out)."""
    places = {"wte.weight": ("wte", ALL, False), "wpe.weight": ("wpe", ALL, False)}
    for i in range(config.n_layer):
        for theirs, ours in GPT2_LAYER.items():
            for kind in ("weight", "bias"):
                places[f"h.{i}.{theirs}.{kind}"] = f"h.{i}.{ours}.{kind}", ALL, True
    places |= {f"ln_f.{kind}": (f"norm.{kind}", ALL, False) for kind in ("weight", "bias")}
    return places


def _llama_layout(config):
    """Llama holds queries, keys and values apart: they are rows of our packed projection. Mixtral is a Llama with
    experts, which it holds apart too, and we in one array."""
    q_rows, kv_rows = config.n_head * config.head_size, config.n_kv_head * config.head_size
    rows = {"q": slice(0, q_rows), "k": slice(q_rows, q_rows + kv_rows), "v": slice(q_rows + kv_rows, None)}
    places = {"embed_tokens.weight": ("wte", ALL, False), "norm.weight": ("norm.weight", ALL, False)}
    for i in range(config.n_layer):
        for kind in ("weight", "bias"):
            for part in rows:
                places[f"layers.{i}.self_attn.{part}_proj.{kind}"] = f"h.{i}.attn.qkv.{kind}", rows[part], False
            for theirs, ours in LLAMA_LAYER.items():
                places[f"layers.{i}.{theirs}.{kind}"] = f"h.{i}.{ours}.{kind}", ALL, False
        for e in range(config.n_expert):
            for theirs, ours in MIXTRAL_EXPERT.items():
                tensor = f"layers.{i}.block_sparse_moe.experts.{e}.{theirs}.weight"
                places[tensor] = f"h.{i}.mlp.experts.{ours}.weight", e, False
        places[f"layers.{i}.block_sparse_moe.gate.weight"] = f"h.{i}.mlp.router.weight", ALL, False
    return places


# ---------------------------------------------------------------------------------------------------------------
# config.json

# What these classes can do and this model cannot: {key: the values that may stand there}
SUPPORTED = {
    "gpt2": {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
             "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,), "bias": (True, False)},
    "llama": {"hidden_act": ("silu", "swish"), "rope_scaling": (None,)},
    "mixtral": {"hidden_act": ("silu", "swish"), "rope_scaling": (None,), "sliding_window": (None,)},
    "minigpt": {},
}


def config_to_json(config: ModelConfig, kind: str) -> dict:
    """The content of config.json."""
    entry = {"model_type": kind, "architectures": [ARCHITECTURE[kind]], "dtype": "float32"}
    if kind == "minigpt":
        return entry | asdict(config)
    entry |= {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tied}
    if not config.causal:
        entry["is_causal"] = False                        # transformers (5 and later) then attends both ways, too
    if kind == "gpt2":
        return entry | {
            "n_positions": config.block_size, "n_embd": config.n_embd, "n_layer": config.n_layer,
            "n_head": config.n_head, "n_inner": config.n_inner, "layer_norm_epsilon": config.norm_eps,
            "activation_function": "gelu_new", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            "bias": config.bias,                          # not a key of GPT-2: without biases the file holds zeros
        }
    if kind == "mixtral":
        entry |= {
            "num_local_experts": config.n_expert, "num_experts_per_tok": config.n_expert_active,
            "sliding_window": None,
            "router_aux_loss": config.router_aux_loss, "router_z_loss": config.router_z_loss,    # no keys of Mixtral
        }
    return entry | {
        "max_position_embeddings": config.block_size, "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer, "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head, "head_dim": config.head_size,
        "intermediate_size": config.n_inner, "rms_norm_eps": config.norm_eps, "hidden_act": "silu",
        "attention_bias": config.bias, "mlp_bias": config.bias, "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
    }


def config_from_json(entry: dict) -> tuple[str, ModelConfig]:
    """(model_type, config) from the content of config.json. ValueError for what this model cannot be, KeyError for
    what is not there."""
    kind = entry.get("model_type")
    if not isinstance(kind, str) or kind not in SUPPORTED:
        raise ValueError(f"model_type is {kind!r}, must be one of {', '.join(SUPPORTED)}")
    for key, allowed in SUPPORTED[kind].items():
        if entry.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{key} is {entry[key]!r}, must be {' or '.join(map(repr, allowed))}")
    if kind == "minigpt":
        return kind, ModelConfig(**{field.name: entry[field.name] for field in fields(ModelConfig)
                                    if field.name in entry})          # a file may be older than a field
    if kind == "gpt2":
        return kind, ModelConfig(
            vocab_size=entry["vocab_size"], block_size=entry["n_positions"], n_embd=entry["n_embd"],
            n_layer=entry["n_layer"], n_head=entry["n_head"], n_inner=entry.get("n_inner"),
            norm_eps=entry.get("layer_norm_epsilon", 1e-5), tied=entry.get("tie_word_embeddings", True),
            causal=entry.get("is_causal", True))
    rope = entry.get("rope_parameters") or {"rope_theta": entry.get("rope_theta", 10000.0)}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_parameters is {rope!r}, must be an object")
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_type is {rope['rope_type']!r}, must be 'default'")
    bias = entry.get("attention_bias", False)
    if entry.get("mlp_bias", False) != bias:
        raise ValueError(f"mlp_bias is {entry.get('mlp_bias', False)}, must be as attention_bias, {bias}")
    config = ModelConfig(
        vocab_size=entry["vocab_size"], block_size=entry["max_position_embeddings"], n_embd=entry["hidden_size"],
        n_layer=entry["num_hidden_layers"], n_head=entry["num_attention_heads"],
        n_kv_head=entry.get("num_key_value_heads"), n_inner=entry["intermediate_size"], norm="rmsnorm",
        norm_eps=entry.get("rms_norm_eps", 1e-6), position="rope", rope_base=rope["rope_theta"], activation="swiglu",
        bias=bias, tied=entry.get("tie_word_embeddings", False), causal=entry.get("is_causal", True),
        **_mixtral_fields(entry) if kind == "mixtral" else {})
    if (entry.get("head_dim") or config.head_size) != config.head_size:
        raise ValueError(f"head_dim is {entry['head_dim']}, must be hidden_size / num_attention_heads, "
                         f"{config.head_size}")
    return kind, config


def _mixtral_fields(entry):
    return dict(n_expert=entry["num_local_experts"], n_expert_active=entry["num_experts_per_tok"],
                router_aux_loss=entry.get("router_aux_loss", 0.0), router_z_loss=entry.get("router_z_loss", 0.0))
