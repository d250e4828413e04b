"""The text that you train on: the first part of tiny Shakespeare, letter by letter. You need not change it."""

from pathlib import Path

import numpy as np

TEXT = (Path(__file__).parent / "shakespeare.txt").read_text(encoding="utf-8")
LETTERS = sorted(set(TEXT))                                                   # token i is LETTERS[i]


def load():
    """The tokens of the text to train on, and of the last 10 000 letters, to evaluate on: two arrays of integers."""
    number = {letter: token for token, letter in enumerate(LETTERS)}
    tokens = np.array([number[letter] for letter in TEXT])
    return tokens[:-10_000], tokens[-10_000:]
