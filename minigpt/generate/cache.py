"""The keys and values of the text so far, so that a new token costs one row of work and not the whole text's."""

from __future__ import annotations

import numpy as np

from ..ops.memory import aligned_empty


class KVCache:
    """Room for B texts of up to block_size tokens, of which `length` are in. GPT.forward puts the tokens it is given
    behind them. Setting `length` back to n forgets everything after the first n tokens."""

    def __init__(self, config, B: int = 1, dtype=np.float32):
        heads, sizes = config.n_kv_head, (config.head_size, config.head_size)
        if config.kv_lora_rank:                   # latent attention keeps the latent and the one key that rope turns
            heads, sizes = 1, (config.kv_lora_rank, config.qk_rope_head_dim)
        self.length = 0
        self.layers = [LayerCache(*(aligned_empty((B, heads, config.block_size, size), dtype) for size in sizes))
                       for _ in range(config.n_layer)]

    @property
    def batch_size(self) -> int:
        return len(self.layers[0].k)


class LayerCache:
    """The keys and values of one layer, (B, G, block_size, D) each; or what latent attention keeps in their place."""

    def __init__(self, k, v):
        self.k, self.v = k, v

    def append(self, position, k, v):
        """Takes in k and v (B, G, T, D) at `position`, and returns all keys and values up to there."""
        end = position + k.shape[2]
        self.k[:, :, position:end] = k
        self.v[:, :, position:end] = v
        return self.k[:, :, :end], self.v[:, :, :end]                                               # (B, G, Tk, D)
