"""Byte pair encoding: the algorithm, both directions, with nothing around it.

A text is cut into pieces (patterns.py: roughly words), a piece into its UTF-8 bytes, and every byte is a token.
Training looks for the pair of neighbouring tokens that occurs most often, makes it one new token, and starts over: its
result is the list of these merges, in order. Encoding replays them on a new piece: among the pairs it holds, always the
one that training merged first. No merge crosses the edge of a piece, so "dog", "dog." and "dog!" share a token.

(Sennrich, Haddow and Birch 2016, arXiv:1508.07909; on bytes: GPT-2, Radford et al. 2019.)
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise

# GPT-2 numbers the 256 bytes with the printable ones first, and in files writes each byte as one visible character:
# a printable byte as itself, the n-th of the others as character 256 + n ("Ġ" is the space).
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER = bytes(_PRINTABLE + sorted(set(range(256)) - set(_PRINTABLE)))
BYTE_TO_CHAR = {
    byte: chr(byte) if n < len(_PRINTABLE) else chr(256 + n - len(_PRINTABLE)) for n, byte in enumerate(BYTE_ORDER)
}
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}

Pair = tuple[int, int]


def encode_piece(ids: Iterable[int], merges: Mapping[Pair, tuple[int, int]]) -> list[int]:
    """Encode one piece: `ids` of its bytes in, ids of its tokens out.

    `merges[left, right] = (rank, token)`. The algorithm: while any two neighbours are a pair in `merges`, replace the
    pair of lowest rank, of equals the leftmost, by its token.

    Looking through the whole piece before each merge would be O(n^2), days for a piece of a million letters. So the
    tokens stand in a linked list (a merge empties its right place and links past it) and the pairs wait in a heap:
    O(n log n), seconds.
    """
    ids = [*ids, None]  # a ring, closed by None: no pair with it has a rank, so the ends need no care
    before = list(range(-1, len(ids) - 1))
    after = [*range(1, len(ids)), 0]
    heap = [(*merges[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in merges]
    heapify(heap)
    while heap:
        rank, token, left = heappop(heap)
        right = after[left]
        # an earlier merge may have taken a token of this pair: then the entry is out of date
        if ids[left] is None or merges.get((ids[left], ids[right])) != (rank, token):
            continue
        ids[left], ids[right] = token, None
        after[left] = after[right]
        before[after[left]] = left
        for i in (before[left], left):  # the merge made two new pairs: with the token before it and the one after
            found = merges.get((ids[i], ids[after[i]]))
            if found:
                heappush(heap, (*found, i))
    return [token for token in ids if token is not None]


def train(pieces: Mapping[str, int], count: int) -> list[Pair]:
    """Learn up to `count` merges from `pieces`, each with how often it occurs; fewer if no pair occurs twice any more.

    The i-th merge makes token 256 + i, and the tokens below that are the bytes in GPT-2's order. Of pairs that occur
    equally often the one with the lower ids goes first. Counting all pairs again after each merge would take minutes;
    but a merge changes only the words that hold its pair, so `where` remembers those and only they are counted again.
    """
    byte_ids = {byte: token for token, byte in enumerate(BYTE_ORDER)}
    words = [[byte_ids[byte] for byte in piece.encode()] for piece in pieces]
    weights = list(pieces.values())
    counts: Counter[Pair] = Counter()
    where: dict[Pair, set[int]] = defaultdict(set)
    for w, word in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += weights[w]
            where[pair].add(w)

    # the most frequent pair comes first; every change of a count adds an entry, and the one that agrees is live
    heap = [(-n, pair) for pair, n in counts.items()]
    heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < count:
        n, pair = heappop(heap)
        if -n != counts[pair]:
            continue
        if -n < 2:
            break
        token = len(BYTE_ORDER) + len(merges)
        merges.append(pair)
        change: Counter[Pair] = Counter()
        for w in where.pop(pair):
            for old in pairwise(words[w]):
                change[old] -= weights[w]
            words[w] = _replace(words[w], pair, token)
            for new in pairwise(words[w]):
                change[new] += weights[w]
                where[new].add(w)
        for changed, difference in change.items():
            if difference:
                counts[changed] += difference
                heappush(heap, (-counts[changed], changed))
    return merges


def _replace(word: list[int], pair: Pair, token: int) -> list[int]:
    """`word` with each occurrence of `pair`, from the left, made one `token`."""
    out = []
    for current in word:
        # a fresh `token` is never part of `pair`, so occurrences do not overlap
        if out and current == pair[1] and out[-1] == pair[0]:
            out[-1] = token
        else:
            out.append(current)
    return out
