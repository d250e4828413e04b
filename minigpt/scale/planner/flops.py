"""How much arithmetic a model is: FLOPs of every part, from the shapes of its parameters.

A weight of a matrix product costs 2 FLOPs a token; q k^T and p v cost 2 T D each a head on a text of T tokens, counted
in full although a causal mask needs half: the convention of all published figures. The backward pass is twice the
forward pass, and full recomputation runs the forward pass of the layers, but not of the head, once more.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from ...config import ModelConfig


@dataclass(frozen=True)
class Layer:
    """One layer: its parameters, and for each token the FLOPs of its forward pass and how many numbers it keeps for
    the backward pass."""

    width: int          # C
    dense: int          # parameters that every token meets
    experts: int        # parameters of all routed experts together
    linear: int         # FLOPs of the products with weights
    attention: int      # FLOPs of q k^T and p v
    whole: int          # numbers kept by each tensor-parallel GPU: inputs of norms, branches and experts
    split: int          # numbers shared out between these GPUs: heads, hidden layers
    scores: int         # H T, attention's scores, which only unfused attention keeps
    routed: int         # copies of the token that are sent to experts


@functools.lru_cache(maxsize=64)
def training_flops(config: ModelConfig, T: int, recompute: str = "none") -> int:
    """FLOPs per token of a training step: forward and backward pass; with recompute="selective" attention's products
    once more, with "full" all of the layers' forward pass."""
    parts = config.forward_flops(T)
    attention, total = parts["scores"] + parts["reduce"], sum(parts.values())
    return 3 * total + {"none": 0, "selective": attention, "full": total - parts["head"]}[recompute]


@functools.lru_cache(maxsize=8)
def layers(config: ModelConfig, T: int) -> tuple[Layer, ...]:
    """The layers of the model on texts of T tokens."""
    return tuple(_layer(config, T, i) for i in range(config.n_layer))


def _layer(config, T, i):
    shapes = _shapes_of_layer(config, i)
    C, H, Hkv, heads = config.n_embd, config.n_head, config.n_kv_head, config.head_size + config.v_head_size
    experts = sum(math.prod(shape) for name, shape in shapes.items() if ".experts." in name)
    routed = config.n_expert_active if experts else 0
    hidden = 0
    for name, shape in shapes.items():
        if name.startswith("mlp.") and len(shape) > 1 and "router" not in name:   # outputs of gate and up, down's input
            hidden += shape[-1 if "down" in name else -2] * (routed if ".experts." in name else 1)
    latents = 2 * (config.q_lora_rank + config.kv_lora_rank)                        # before and after their norms
    return Layer(
        width=C, experts=experts, dense=sum(map(math.prod, shapes.values())) - experts,
        linear=sum(2 * config.num_met(name, shape) for name, shape in shapes.items() if len(shape) > 1),
        attention=2 * T * H * heads, whole=4 * C + latents + 2 * C * routed, split=(H + Hkv) * heads + hidden,
        scores=H * T, routed=routed)


def _shapes_of_layer(config, i):
    prefix = config.stored_name(f"h.{i}.")
    return _shapes_by_layer(config)[prefix]


@functools.lru_cache(maxsize=8)
def _shapes_by_layer(config):
    found = {}
    for name, shape in config.parameter_shapes().items():
        if name.startswith("h."):
            _, i, part = name.split(".", 2)
            found.setdefault(f"h.{i}.", {})[part] = shape
    return found
