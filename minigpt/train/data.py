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


class Subset:
    """The items start .. stop - 1 of a data set."""

    def __init__(self, dataset, start, stop):
        self.dataset, self.start, self.stop = dataset, start, stop

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(f"Subset: index {i}, there are {len(self)} items")
        return self.dataset[self.start + i]


def split(dataset, eval_fraction):
    """The front of a text to train on, its end (at least one block) to evaluate on."""
    if len(dataset) < 2:
        raise ValueError(f"split: the text fills {len(dataset)} block, must fill 2 or more (one to train on, one to "
                         "evaluate on); take a longer text or a smaller block")
    border = min(len(dataset) - 1, max(1, round(len(dataset) * (1 - eval_fraction))))
    return Subset(dataset, 0, border), Subset(dataset, border, len(dataset))


def fingerprint(dataset):
    """A short text that differs when the data do."""
    crc = 0
    for i in range(len(dataset)):
        crc = zlib.crc32(np.ascontiguousarray(dataset[i]), crc)
    return f"{len(dataset)} blocks, crc32 {crc:08x}"
