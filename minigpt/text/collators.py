"""Collators: a list of token blocks becomes a batch for one objective, under transformers' names.

    causal      every token is a label, which the one before it is to predict (the Trainer shifts)
    masked      some tokens are hidden, and are to be predicted where they stand (BERT, arXiv:1810.04805)
    knowledge   masked, but names are hidden as a whole (DataCollatorForKnowledge, in knowledge.py)

All randomness comes from a generator an item. The Trainer names each item by its place in the run, so that the masks
of step s are the same after a restart, whatever the batch size, and different in every epoch.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from minigpt.text.tokenizer import Tokenizer
from minigpt.text.words import Words

IGNORED = -100  # the label of a position that does not count


class DataCollatorForLanguageModeling:
    """Turns items into {"input_ids", "labels", "attention_mask"}, (B, T) each, int64.

    Items are arrays or lists of ids, or dicts that hold such `input_ids`. Of unequal lengths, they are padded on the
    right with the tokenizer's pad token, to a multiple of pad_to_multiple_of; attention_mask is 0 there, the label
    -100. GPT takes no attention mask: a causal one never looks to the right; a masked one does see the padding, as
    any other token, and learns to pass it over. Blocks of a TextDataset need none.

    mlm=False: labels are the ids. mlm=True: each token that is not special is chosen with mlm_probability (with
    whole_word_mask, each word); labels are the chosen ids, -100 elsewhere. A chosen token becomes the mask token with
    mask_replace_prob, any token of the vocabulary with random_replace_prob, or else stays; pieces of a word are drawn
    each by itself, as BERT does.

    A Trainer makes its model fit: bidirectional with mlm=True, causal with mlm=False.

    return_tensors: "np", or "pt" for torch's. seed: of the masks; None takes fresh ones, but in a Trainer, whose own
    seed then decides. ValueError for arguments that cannot be meant, and for a tokenizer without the token needed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        mlm: bool = True,
        whole_word_mask: bool = False,
        mlm_probability: float = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        pad_to_multiple_of: int | None = None,
        return_tensors: str = "np",
        seed: int | None = None,
    ):
        self.name = type(self).__name__
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(f"{self.name}: tokenizer is {tokenizer!r}, must be a Tokenizer")
        for name, value in (("mlm", mlm), ("whole_word_mask", whole_word_mask)):
            if not isinstance(value, bool):
                raise TypeError(f"{self.name}: {name} is {value!r}, must be True or False")
        mlm_probability = check_share(self.name, "mlm_probability", mlm_probability)
        mask_replace_prob = check_share(self.name, "mask_replace_prob", mask_replace_prob)
        random_replace_prob = check_share(self.name, "random_replace_prob", random_replace_prob)
        check_share(self.name, "mask_replace_prob + random_replace_prob", mask_replace_prob + random_replace_prob)
        if seed is not None and not (isinstance(seed, (int, np.integer)) and seed is not True and seed >= 0):
            raise ValueError(f"{self.name}: seed is {seed!r}, must be an integer of 0 or more, or None")
        if mlm and tokenizer.mask_token is None:
            raise ValueError(
                f"{self.name}: the tokenizer has no mask token, which masked language modelling needs; add one with "
                'tokenizer.add_special_tokens({"mask_token": "<mask>"}) and give it a row with '
                "model.resize_token_embeddings(len(tokenizer)), or train a causal model with mlm=False"
            )
        if whole_word_mask and not mlm:
            raise ValueError(f"{self.name}: whole_word_mask is True, must be False with mlm=False, which masks nothing")
        if pad_to_multiple_of is not None and not (type(pad_to_multiple_of) is int and pad_to_multiple_of > 0):
            raise ValueError(f"{self.name}: pad_to_multiple_of is {pad_to_multiple_of!r}, must be an integer above 0")
        if return_tensors not in ("np", "pt"):
            raise ValueError(f'{self.name}: return_tensors is {return_tensors!r}, must be "np" or "pt"')
        self.tokenizer, self.mlm, self.whole_word_mask = tokenizer, mlm, whole_word_mask
        self.mlm_probability, self.mask_replace_prob = mlm_probability, mask_replace_prob
        self.random_replace_prob, self.pad_to_multiple_of = random_replace_prob, pad_to_multiple_of
        self.return_tensors, self.seed = return_tensors, seed
        self._special = np.isin(np.arange(len(tokenizer)), list(tokenizer.special_tokens.values()))     # (V,)
        self._stream = np.random.default_rng(seed)

    def __call__(self, items: Sequence, keys: Sequence[tuple[int, ...]] | None = None) -> dict:
        """keys: for each item, integers from which, with the seed, all of its draws follow. None: those of the
        collator's own stream."""
        rows = [self._ids(item) for item in items]
        if keys is None:
            generators = [self._stream] * len(rows)
        else:
            own = [] if self.seed is None else [self.seed]
            generators = [np.random.default_rng([*own, *key]) for key in keys]
        pairs = [self.label(ids, rng) for ids, rng in zip(rows, generators, strict=True)]
        return self._batch(pairs)

    @functools.cached_property
    def words(self) -> Words:
        return Words(self.tokenizer)

    def fingerprint(self) -> str:
        """All that decides what the collator makes of an item and its key."""
        shares = f"{self.mlm_probability}, {self.mask_replace_prob}, {self.random_replace_prob}"
        words = ", whole words" * self.whole_word_mask
        what = f"masked ({shares}{words}, seed {self.seed})" if self.mlm else "causal"
        return f"{what}, multiples of {self.pad_to_multiple_of}"

    def label(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """ids (T,) -> what the model sees, (T,), and the labels, (T,)."""
        if not self.mlm:
            return ids, np.where(ids == self.tokenizer.pad_token_id, IGNORED, ids)
        unit = self.choose(ids, rng)                                                                # (T,)
        chosen = unit >= 0
        draw = rng.random(len(ids))[unit]                                                           # (T,)
        replaced = chosen & (draw < self.mask_replace_prob)
        shuffled = chosen & ~replaced & (draw < self.mask_replace_prob + self.random_replace_prob)
        seen = np.where(replaced, self.tokenizer.mask_token_id, ids)
        seen = np.where(shuffled, rng.integers(len(self.tokenizer), size=len(ids)), seen)
        return seen, np.where(chosen, ids, IGNORED)

    def choose(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(T,): -1 for a token that is not chosen; of those that are, tokens of one number share one draw of whether
        they are masked, replaced or kept."""
        position = np.arange(len(ids))
        word = position
        if self.whole_word_mask:
            word = np.cumsum(~self.words.continues(ids)) - 1
        chosen = (rng.random(len(ids)) < self.mlm_probability)[word] & ~self._special[ids]
        return np.where(chosen, position, -1)

    def _ids(self, item) -> np.ndarray:
        if isinstance(item, Mapping):
            if "input_ids" not in item:
                raise ValueError(f"{self.name}: an item holds {', '.join(map(str, item))}, must hold input_ids")
            item = item["input_ids"]
        ids = np.asarray(item)
        if ids.shape == (0,):
            raise ValueError(f"{self.name}: an item is empty, must hold one id or more")
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
            raise ValueError(f"{self.name}: an item is {ids.dtype} of shape {ids.shape}, must be integers in one axis")
        if ids.min() < 0 or ids.max() >= len(self.tokenizer):
            raise ValueError(f"{self.name}: an item holds the ids {ids.min()} .. {ids.max()}, must be in 0 .. "
                             f"{len(self.tokenizer) - 1}, the tokenizer's")
        return ids.astype(np.int64)

    def _batch(self, pairs) -> dict:
        """The rows, padded to one length."""
        T, multiple = max((len(ids) for ids, _ in pairs), default=0), self.pad_to_multiple_of or 1
        T += -T % multiple
        if any(len(ids) < T for ids, _ in pairs) and self.tokenizer.pad_token_id is None:
            raise ValueError(
                f"{self.name}: items of {min(len(ids) for ids, _ in pairs)} to {T} tokens must be padded, and the "
                'tokenizer has no pad token; add one with tokenizer.add_special_tokens({"pad_token": "<pad>"}), and '
                "model.resize_token_embeddings(len(tokenizer))"
            )
        batch = {"input_ids": np.full((len(pairs), T), self.tokenizer.pad_token_id or 0),        # None: nothing to pad
                 "labels": np.full((len(pairs), T), IGNORED),
                 "attention_mask": np.zeros((len(pairs), T), np.int64)}
        for i, (ids, labels) in enumerate(pairs):
            for name, row in (("input_ids", ids), ("labels", labels), ("attention_mask", 1)):
                batch[name][i, :len(ids)] = row
        if self.return_tensors == "pt":
            from minigpt.ops.torch_ops import torch

            return {name: torch.from_numpy(array) for name, array in batch.items()}
        return batch


def check_share(owner: str, name: str, value) -> float:
    """The value, one of NumPy's as Python's. ValueError unless it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or not 0 <= value <= 1:
        raise ValueError(f"{owner}: {name} is {value!r}, must be between 0 and 1")
    return float(value)
