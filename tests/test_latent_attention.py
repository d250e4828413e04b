"""Multi-head latent attention: transformers' DeepseekV3 as the judge, and what its cache keeps. That it agrees with
finite differences, that backends and text in pieces agree, is tested with the other shapes in test_model.py."""

from dataclasses import replace

import pytest
from test_model import LATENT, SMALL, assert_equals

from minigpt.config import ModelConfig
from minigpt.generate.cache import KVCache
from minigpt.scale.planner.memory import kv_cache_bytes

SHAPES = {"queries with a latent": replace(SMALL, **LATENT, q_lora_rank=12, norm_eps=1e-6),
          "queries without": replace(SMALL, **LATENT, norm_eps=1e-6, tied=False)}
THEIRS = {"norm1": "input_layernorm", "attn.q_a": "self_attn.q_a_proj", "attn.q_norm": "self_attn.q_a_layernorm",
          "attn.q_b": "self_attn.q_b_proj", "attn.kv_a": "self_attn.kv_a_proj_with_mqa",
          "attn.kv_norm": "self_attn.kv_a_layernorm", "attn.kv_b": "self_attn.kv_b_proj",
          "attn.proj": "self_attn.o_proj", "norm2": "post_attention_layernorm", "mlp.gate": "mlp.gate_proj",
          "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
OTHERS = {"wte": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight"}


def their_name(config, name):
    if name in OTHERS:
        return OTHERS[name]
    _, i, part = name.removesuffix(".weight").split(".", 2)
    theirs = THEIRS[part] if part != "attn.q_b" or config.q_lora_rank else "self_attn.q_proj"
    return f"model.layers.{i}.{theirs}.weight"


def their_everything(model, dtype, tokens, targets):
    """What test_model.everything gives, computed by transformers. All of its layers are dense, and its rope turns
    halves, as ours does: with DeepSeek's own weights rows of q_b and kv_a have to change places."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = model.config
    theirs = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(
        vocab_size=config.vocab_size, max_position_embeddings=config.block_size, hidden_size=config.n_embd,
        num_hidden_layers=config.n_layer, first_k_dense_replace=config.n_layer, num_attention_heads=config.n_head,
        num_key_value_heads=config.n_head, intermediate_size=config.n_inner, rms_norm_eps=config.norm_eps,
        q_lora_rank=config.q_lora_rank or None, kv_lora_rank=config.kv_lora_rank,
        qk_nope_head_dim=config.qk_nope_head_dim, qk_rope_head_dim=config.qk_rope_head_dim,
        v_head_dim=config.v_head_dim, rope_interleave=False, attention_bias=False, tie_word_embeddings=config.tied,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base})).to(dtype).eval()
    named = dict(theirs.named_parameters())
    places = {name: named[their_name(config, name)] for name in model.params}
    assert len(places) == len(named)
    with torch.no_grad():
        for name, param in places.items():
            param.copy_(torch.tensor(model.params[name]))
    out = theirs(torch.tensor(tokens)).logits
    loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), torch.tensor(targets).flatten(), reduction="none")
    mean = loss.sum() / int((targets != -100).sum())
    mean.backward()
    results = {"logits": out, "loss": mean, "losses": loss.reshape(targets.shape)}
    results |= {f"gradient of {name}": param.grad for name, param in places.items()}
    return {name: x.detach().numpy() for name, x in results.items()}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_equals_transformers(config):
    transformers = pytest.importorskip("transformers")
    assert transformers.DeepseekV3ForCausalLM                                     # imported before no_float32
    assert_equals(their_everything, config)


def test_cache_keeps_the_latent_and_one_key():
    """As many bytes as the planner says, and as DeepSeek-V2's paper: (512 + 64) 2 a token and layer in 16 bits."""
    config = SHAPES["queries with a latent"]
    cache = KVCache(config)
    kept = sum(layer.k.nbytes + layer.v.nbytes for layer in cache.layers)
    assert kept == config.n_layer * config.block_size * (8 + 4) * 4 == kv_cache_bytes(config, config.block_size, size=4)
    assert kv_cache_bytes(ModelConfig.preset("deepseek-v2")) == 60 * (512 + 64) * 2
