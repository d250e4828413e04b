"""Tasks 4.1 to 4.3: the tokenizer around the algorithm: back to text, special tokens, and a file.

`merges` are those of bpe.train. `special` is a list of texts that are one token each, such as "<|endoftext|>"; their
numbers follow those of the merges: special[i] is token 256 + len(merges) + i.
"""

import re

from . import bpe, split


def decode(tokens, merges, special):
    """The text of a list of tokens.

    A token may hold part of a character only. Where the bytes of all tokens together are no UTF-8, U+FFFD stands, as
    bytes.decode(errors="replace") puts it.
    """
    # BEGIN SOLUTION 4.1
    known = bytes_of_tokens(merges) + [text.encode() for text in special]
    return b"".join(known[token] for token in tokens).decode(errors="replace")
    # END SOLUTION


# BEGIN SOLUTION 4.1 NO PROMPT
def bytes_of_tokens(merges):
    """The bytes that each token stands for, without the special ones."""
    known = [bytes([byte]) for byte in bpe.BYTE_OF_TOKEN]
    for left, right in merges:
        known.append(known[left] + known[right])
    return known


# END SOLUTION
def encode(text, merges, special, allowed=False):
    """The tokens of a text: it is cut into pieces by GPT-2's rules, and each piece is encoded.

    With allowed=True the texts in `special` become their tokens, of several that begin at one place the longest, and
    what stands between them is encoded as a text of its own. Otherwise they are text like any other: whoever only
    supplies text must not be able to end a document.
    """
    # BEGIN SOLUTION 4.2
    number = {word: 256 + len(merges) + i for i, word in enumerate(special)} if allowed else {}
    longest_first = sorted(number, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if number else [text]
    tokens = []
    for part in parts:
        if part in number:
            tokens.append(number[part])
        else:
            for piece in split.split_gpt2(part):
                tokens += bpe.encode_piece(piece, merges)
    return tokens
    # END SOLUTION


def to_text(merges):
    r"""The merges as GPT-2's file vocab.bpe holds them: the line "#version: 0.2", then one line for each merge, its two
    tokens with a space between; "\n" ends every line.

    A token is written with one visible character for each of its bytes: a printable byte (see bpe.PRINTABLE) as the
    character of that number, and number n of the others, counted from 0, as character 256 + n. So the space, byte 32
    and the 33rd of the others, is "Ġ", character 288.
    """
    # BEGIN SOLUTION 4.3
    known = bytes_of_tokens(merges)
    lines = ["#version: 0.2"]
    for left, right in merges:
        lines.append(" ".join("".join(character(byte) for byte in known[token]) for token in (left, right)))
    return "\n".join(lines) + "\n"
    # END SOLUTION


# BEGIN SOLUTION 4.3 NO PROMPT
def character(byte):
    """The visible character of a byte: the bytes that are not printable are the last tokens of the first 256."""
    token = bpe.TOKEN_OF_BYTE[byte]
    return chr(byte) if token < len(bpe.PRINTABLE) else chr(256 + token - len(bpe.PRINTABLE))


# END SOLUTION
def from_text(text):
    """The merges in such a file, [(left, right), ...]: the inverse of to_text."""
    # BEGIN SOLUTION 4.3
    number = {character(byte): token for token, byte in enumerate(bpe.BYTE_OF_TOKEN)}
    merges = []
    for line in text.splitlines()[1:]:
        left, right = line.split(" ")
        number[left + right] = 256 + len(merges)
        merges.append((number[left], number[right]))
    return merges
    # END SOLUTION
