"""Task 1.1: the parameters, before training. A dictionary {name: array}, float32, with GPT-2's start."""

import numpy as np


def init_params(config, seed):
    """The parameters of a GPT with the names and shapes below, from np.random.default_rng(seed).

    config: a dictionary with vocab_size V, block_size P, n_layer L, n_head, n_embd C.

        wte (V, C)   wpe (P, C)   norm.weight (C,)   norm.bias (C,)      and for every layer i = 0 ... L - 1
        h.i.norm1.weight (C,)         h.i.norm1.bias (C,)        h.i.norm2.weight (C,)       h.i.norm2.bias (C,)
        h.i.attn.qkv.weight (3C, C)   h.i.attn.qkv.bias (3C,)    h.i.attn.proj.weight (C, C)    h.i.attn.proj.bias (C,)
        h.i.mlp.up.weight (4C, C)     h.i.mlp.up.bias (4C,)      h.i.mlp.down.weight (C, 4C)    h.i.mlp.down.bias (C,)

    Biases are 0, the weights of norms 1. All matrices are normal with mean 0 and deviation 0.02; those of the two
    projections that are added to the residual stream, proj and down, smaller by 1 / sqrt(2L): each layer adds two
    branches, and so the variance of their sum does not grow with depth.
    """
    # BEGIN SOLUTION 1.1
    rng, C = np.random.default_rng(seed), config["n_embd"]
    shapes = {"wte": (config["vocab_size"], C), "wpe": (config["block_size"], C)}
    for i in range(config["n_layer"]):
        for name, outputs, inputs in (("attn.qkv", 3 * C, C), ("attn.proj", C, C), ("mlp.up", 4 * C, C),
                                      ("mlp.down", C, 4 * C)):
            shapes |= {f"h.{i}.{name}.weight": (outputs, inputs), f"h.{i}.{name}.bias": (outputs,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"h.{i}.{name}.weight": (C,), f"h.{i}.{name}.bias": (C,)}
    shapes |= {"norm.weight": (C,), "norm.bias": (C,)}
    params = {}
    for name, shape in shapes.items():
        std = 0.02 / np.sqrt(2 * config["n_layer"]) if name.endswith(("proj.weight", "down.weight")) else 0.02
        params[name] = rng.normal(0, std, shape) if len(shape) == 2 else np.full(shape, name.endswith("weight"))
    return {name: param.astype(np.float32) for name, param in params.items()}
    # END SOLUTION
