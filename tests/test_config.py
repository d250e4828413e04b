"""ModelConfig: counts against published ones, without allocating anything, and what it refuses."""

import math
from dataclasses import replace

import pytest

from minigpt.config import PRESETS, ModelConfig
from minigpt.model import GPT

COUNTS = {
    "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
    "llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320, "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496, "llama3-405b": 405_853_388_800,
    "mistral-7b": 7_241_732_096, "smollm2-135m": 134_515_008, "moe-1.8t": 1_803_051_872_256,
    "gpt3-small": 125_226_240, "gpt3-medium": 355_871_744, "gpt3-large": 760_300_032, "gpt3-xl": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280, "gpt3-6.7b": 6_658_404_352, "gpt3-13b": 12_853_386_240, "gpt3-175b": 174_604_259_328,
    "mixtral-8x7b": 46_702_792_704, "mixtral-8x22b": 140_620_634_112,
    "deepseek-v2-lite": 15_706_484_224, "deepseek-v2": 235_741_434_880, "deepseek-v3": 671_026_419_200,
}


@pytest.mark.parametrize("preset", COUNTS)
def test_parameter_counts(preset):
    assert ModelConfig.preset(preset).num_parameters() == COUNTS[preset]


def test_counts_of_relatives():
    """Models that differ from a preset in little: Mixtral 8x22B with 32768 tokens, Llama 3.2 1B, DistilGPT-2, and one
    block of GPT-2."""
    def count(preset, **changes):
        return ModelConfig.preset(preset, **changes).num_parameters()

    assert count("mixtral-8x22b", vocab_size=32768) == 140_630_071_296
    assert count("llama3-8b", tied=True, n_layer=16, n_embd=2048, n_inner=8192) == 1_235_814_400
    assert count("gpt2", n_layer=6) == 81_912_576
    assert count("gpt2") - count("gpt2", n_layer=11) == 7_087_872
    assert count("gpt2") - (50257 + 1024) * 768 == 85_056_000


def test_rotary_tables_are_no_parameters():
    """Checkpoints of Llama 2 hold them as buffers, 64 numbers a layer, and are listed with that many more."""
    listed = {"llama2-7b": 6_738_417_664, "llama2-13b": 13_015_866_880, "llama2-70b": 68_976_653_312}
    for preset, count in listed.items():
        assert count - COUNTS[preset] == 64 * ModelConfig.preset(preset).n_layer


def test_active_parameters():
    """Mistral's figures, 12.9 and 39 billion, DeepSeek's, 2.4 (without the embedding), 21 and 37; a dense model has no
    idle ones."""
    active = {"mixtral-8x7b": 12_879_925_248, "mixtral-8x22b": 39_152_031_744, "gpt2": COUNTS["gpt2"],
              "deepseek-v2-lite": 2_661_150_208, "deepseek-v2": 21_375_800_320, "deepseek-v3": 37_552_297_472}
    assert {preset: ModelConfig.preset(preset).num_active_parameters() for preset in active} == active


def test_latent_attention_of_deepseek_v3():
    config = ModelConfig.preset("deepseek-v3")
    attention = sum(math.prod(shape) for name, shape in config.parameter_shapes().items() if ".attn." in name)
    assert attention == 61 * 187_107_328
    assert config.num_active_parameters() - config.vocab_size * config.n_embd == 36_625_618_432


def test_shared_layers_count_once():
    """GPT-2 small with ALBERT's sharing: one block, 46,473,216 parameters, and the arithmetic of twelve."""
    shared = ModelConfig.preset("gpt2", share_layers=True)
    assert shared.num_parameters() == shared.num_active_parameters() == 46_473_216
    assert shared.flops_per_token() == ModelConfig.preset("gpt2").flops_per_token()


def test_small_presets_count_what_they_hold():
    for preset in PRESETS.keys() - COUNTS.keys():
        model = GPT(ModelConfig.preset(preset), "numpy")
        assert model.num_parameters() == sum(param.size for param in model.params.values())


def test_flops_of_gpt2():
    """The total of nanoGPT's transformer_sizing notebook for one text of 1024 tokens."""
    config = ModelConfig.preset("gpt2", bias=False)
    assert config.num_parameters() == 124_337_664
    assert 1024 * config.flops_per_token() == 291_648_307_200
    assert config.flops_per_token() == replace(config, tied=False).flops_per_token()
    assert config.flops_per_token(512) == config.flops_per_token() - 4 * 512 * 768 * 12


@pytest.mark.parametrize("field, value, message", [
    ("n_layer", 0, "n_layer is 0, must be an integer of 1 or more"),
    ("n_layer", True, "n_layer is True, must be an integer"),
    ("vocab_size", 2.5, "vocab_size is 2.5, must be an integer"),
    ("n_embd", 770, "n_embd is 770, must be a multiple of n_head, 12"),
    ("n_kv_head", 5, "n_kv_head is 5, must divide n_head, 12"),
    ("norm", "batchnorm", "norm is 'batchnorm', must be layernorm or rmsnorm"),
    ("position", "alibi", "position is 'alibi', must be learned or rope"),
    ("activation", "relu", "activation is 'relu', must be gelu or swiglu"),
    ("norm_eps", 0.0, "norm_eps is 0.0, must be a positive number"),
    ("rope_base", float("nan"), "rope_base is nan, must be a positive number"),
    ("bias", 1, "bias is 1, must be True or False"),
    ("n_expert", -1, "n_expert is -1, must be an integer of 0 or more"),
    ("route_scale", 0, "route_scale is 0, must be a positive number"),
    ("router_aux_loss", -1.0, "router_aux_loss is -1.0, must be a number of 0 or more"),
    ("gate", "hash", "gate is 'hash', must be softmax or sigmoid"),
])
def test_bad_configs_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{field: value})


@pytest.mark.parametrize("changes, message", [
    (dict(activation="gelu"), "activation is 'gelu', must be swiglu with experts"),
    (dict(n_expert_active=9), "n_expert_active is 9, must be at most n_expert, 8"),
    (dict(n_expert_group=3), "n_expert_group is 3, must be a divisor of n_expert, 8"),
    (dict(n_expert_group=8), "n_expert_group is 8, .* leaves 2 experts or more in a group"),
    (dict(n_expert_group=4, n_expert_active=3), "n_expert_group_active is 1, .* enough for 3 active experts"),
    (dict(n_dense_layers=12), "n_dense_layers is 12, must be less than n_layer, 12"),
    (dict(n_dense_layers=1, share_layers=True), "n_dense_layers is 1, must be 0 with share_layers"),
])
def test_experts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**dict(n_expert=8, activation="swiglu") | changes)


@pytest.mark.parametrize("field, value", [
    ("n_expert_active", 3), ("n_expert_shared", 1), ("n_dense_layers", 1), ("gate", "sigmoid"),
    ("normalize_gates", False), ("router_bias", True), ("router_z_loss", 0.1)])
def test_options_of_experts_mean_nothing_to_a_dense_model(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value!r}, must be .* without experts"):
        ModelConfig(**{field: value})


def test_a_preset_of_experts_can_be_made_dense():
    dense = ModelConfig.preset("moe-char", n_expert=0)
    assert dense == ModelConfig.preset("llama-char", n_inner=512)


@pytest.mark.parametrize("changes, message", [
    (dict(kv_lora_rank=-1), "kv_lora_rank is -1, must be an integer of 0 or more"),
    (dict(kv_lora_rank=0), "qk_nope_head_dim is 8, must be 0 without kv_lora_rank"),
    (dict(v_head_dim=0), "v_head_dim is 0, must be an integer of 1 or more"),
    (dict(position="learned"), "position is 'learned', must be 'rope' with kv_lora_rank"),
    (dict(n_kv_head=4), "n_kv_head is 4, must be n_head, 12, with kv_lora_rank"),
    (dict(qk_rope_head_dim=3), "qk_rope_head_dim is 3, must be even"),
    (dict(v_head_dim=13), "v_head_dim is 13, must be at most qk_nope_head_dim [+] qk_rope_head_dim, 12"),
])
def test_latent_attention_that_does_not_fit_is_refused(changes, message):
    latent = dict(kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, position="rope")
    with pytest.raises(ValueError, match=message):
        ModelConfig(**latent | changes)


def test_rope_needs_even_heads():
    with pytest.raises(ValueError, match="head size n_embd / n_head is 3, must be even"):
        ModelConfig(position="rope", n_embd=36)


def test_unknown_preset():
    with pytest.raises(ValueError, match="no preset named 'gpt5', there are char"):
        ModelConfig.preset("gpt5")
