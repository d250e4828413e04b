"""Tasks 3.1 and 3.2: byte pair encoding (Sennrich, Haddow, Birch 2016, arXiv:1508.07909), on bytes as in GPT-2.

A piece is a list of tokens: at first one for each of its UTF-8 bytes. Training finds the pair of neighbours that occurs
most often, makes it one new token, and starts over; what it learns is the list of these pairs, the *merges*, in order.
Merge number i makes token 256 + i. Encoding replays the merges on a new piece.
"""

from .pairs import count_pairs, merge

# The first 256 tokens are the bytes, in GPT-2's order: printable ones first. "a" is byte 97 and token 64.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_OF_TOKEN = [*PRINTABLE, *sorted(set(range(256)) - set(PRINTABLE))]
TOKEN_OF_BYTE = {byte: token for token, byte in enumerate(BYTE_OF_TOKEN)}


def train(pieces, count):
    """pieces: {piece, a string: how often it occurs} -> up to `count` merges, [(left, right), ...].

    Each time the most frequent pair is merged; of pairs that are equally frequent, the one with the smaller left token,
    then with the smaller right token. Training ends early when no pair occurs twice.
    HINT: count over the different pieces, with how often each occurs, never over the whole text.
    """
    # BEGIN SOLUTION 3.1
    words = [([TOKEN_OF_BYTE[byte] for byte in piece.encode()], often) for piece, often in pieces.items()]
    merges = []
    while len(merges) < count:
        counts = count_pairs(words)
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        words = [(merge(tokens, best, 256 + len(merges)), often) for tokens, often in words]
        merges.append(best)
    return merges
    # END SOLUTION


def encode_piece(piece, merges):
    """piece, a string, and the merges of `train` -> its tokens: while there is a pair of neighbours that is among the
    merges, the pair that was learned first is merged."""
    # BEGIN SOLUTION 3.2
    tokens = [TOKEN_OF_BYTE[byte] for byte in piece.encode()]
    rank = {tuple(pair): i for i, pair in enumerate(merges)}
    while True:
        known = [pair for pair in zip(tokens, tokens[1:], strict=False) if pair in rank]
        if not known:
            return tokens
        first = min(known, key=rank.get)
        tokens = merge(tokens, first, 256 + rank[first])
    # END SOLUTION
