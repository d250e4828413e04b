"""Which blocks of text make up step s: a pure function of the seed and s, so that a resumed run sees what the
uninterrupted one would have seen, and nothing needs saving."""

import functools
import zlib

import numpy as np


@functools.lru_cache(maxsize=2)
def _order(seed, epoch, samples):
    return np.random.default_rng([seed, epoch]).permutation(samples)


def sample_indices(seed, start, count, samples):
    """The `count` indices from position `start` of an endless stream that goes through all samples in a new random
    order every epoch."""
    return [int(_order(seed, i // samples, samples)[i % samples]) for i in range(start, start + count)]


def default_data_collator(items):
    """A batch of blocks, each an array of T token ids -> {"input_ids": (B, T), "labels": (B, T)}. The labels are the
    inputs; the Trainer shifts them."""
    tokens = np.stack(items)
    return {"input_ids": tokens, "labels": tokens}


def fingerprint(dataset):
    """A short text that differs when the data do."""
    if hasattr(dataset, "tokens"):  # a TextDataset: its blocks may overlap, its tokens do not
        crc = zlib.crc32(np.ascontiguousarray(dataset.tokens))
        return f"{len(dataset)} blocks of {dataset.block_size}, crc32 {crc:08x}"
    crc = 0
    for i in range(len(dataset)):
        crc = zlib.crc32(np.ascontiguousarray(dataset[i]), crc)
    return f"{len(dataset)} blocks, crc32 {crc:08x}"
