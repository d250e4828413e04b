"""What a GPU has to hold: weights, gradients, optimiser (shared out as ZeRO's stages say), activations, KV cache.

Sources: ZeRO (arXiv:1910.02054) section 3 and 5 for the states; Korthikanti et al. (arXiv:2205.05198) section 4 for the
activations of a layer, generalised from GPT's shape by counting every kept array: inputs of the norms, of attention
and of the MLP, queries, keys, values, attention's output, the MLP's hidden arrays.
"""

from __future__ import annotations

from ...config import ModelConfig
from .flops import Layer, layers
from .hardware import Precision

RECOMPUTE = ("none", "selective", "full")


def state_bytes(parameters: float, precision: Precision, zero: int = 0, shards: int = 1) -> dict[str, float]:
    """{"weights", "gradients", "optimizer"}: bytes on each of `shards` data-parallel GPUs, for the parameters that they
    hold in common. ZeRO stage 1 shares out the optimiser, 2 the gradients too, 3 the weights too."""
    return {"weights": parameters * precision.weight / (shards if zero >= 3 else 1),
            "gradients": parameters * precision.gradient / (shards if zero >= 2 else 1),
            "optimizer": parameters * precision.optimizer / (shards if zero >= 1 else 1)}


def activation_bytes(layer: Layer, tokens: int, tensor: int = 1, sequence_parallel: bool = False,
                     recompute: str = "none", dropout: bool = False, size: int = 2) -> float:
    """Bytes that one layer keeps of a micro-batch of that many tokens until its backward pass, numbers taking `size`.

    recompute  "none": everything, the attention scores too. "selective": all but the scores, which fused attention
               never writes. "full": the layer's input alone.
    dropout    its masks take a byte an element, and attention's output of it is kept beside the scores.
    """
    shared = tensor if sequence_parallel else 1
    if recompute == "full":
        return tokens * layer.width * size / shared
    whole = layer.whole * size + (2 * layer.width if dropout else 0)
    split = layer.split * size
    if recompute == "none":
        split += layer.scores * (2 * size + 1 if dropout else size)
    return tokens * (whole / shared + split / tensor)


def kv_cache_bytes(config: ModelConfig, tokens: int = 1, size: int = 2) -> int:
    """Bytes that generation keeps of that many tokens: their keys and values, or the latent that these are made of."""
    if config.kv_lora_rank:
        return tokens * config.n_layer * (config.kv_lora_rank + config.qk_rope_head_dim) * size
    return tokens * config.n_layer * 2 * config.n_kv_head * config.head_size * size


def model_activation_bytes(config: ModelConfig, T: int, b: int = 1, **options) -> float:
    """activation_bytes of all layers, of b texts of T tokens."""
    return sum(activation_bytes(layer, b * T, **options) for layer in layers(config, T))
