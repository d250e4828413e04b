"""Which tokens belong to one word, from the ids alone: a word is a run of letters and digits, and a token goes on with
the word before it if the one ends and the other begins with such a character.

That is where GPT's patterns cut, too (patterns.py), so the pieces that BPE made of a word are together again.
"""

import numpy as np

from minigpt.text.tokenizer import Tokenizer


class Words:
    """`continues(ids)` for the vocabulary of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        special = set(tokenizer.special_tokens.values())
        tokens = [b"" if id in special else token or b"" for id, token in enumerate(tokenizer.tokens)]
        self._begins = np.array([_is_of_a_word(token[:1], token, 0) for token in tokens])           # (V,)
        self._ends = np.array([_is_of_a_word(token[-1:], token, -1) for token in tokens])           # (V,)

    def continues(self, ids: np.ndarray) -> np.ndarray:
        """(T,) bool: whether each token goes on with the word of the token before it."""
        result = np.zeros(len(ids), bool)
        result[1:] = self._ends[ids[:-1]] & self._begins[ids[1:]]
        return result


def _is_of_a_word(byte: bytes, token: bytes, end: int) -> bool:
    """Whether the token has a letter or digit at that end. A part of a character counts as one: rare letters are cut
    into bytes, signs hardly ever."""
    try:
        return bool(token) and token.decode()[end].isalnum()
    except UnicodeDecodeError:
        return byte[0] >= 0x80 or byte.isalnum()
