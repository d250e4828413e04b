"""Tasks 2.1 and 2.2: what byte pair encoding does again and again: it counts pairs of neighbours, and makes a pair one
token. A piece of text is a list of tokens, which are numbers."""


def count_pairs(words):
    """words: [(tokens, how often this piece occurs), ...] -> {(left, right): how often these two are neighbours}.

    Every place counts: the pair (7, 7) stands in [7, 7, 7] twice.
    """
    # BEGIN SOLUTION 2.1
    counts = {}
    for tokens, often in words:
        for pair in zip(tokens, tokens[1:], strict=False):
            counts[pair] = counts.get(pair, 0) + often
    return counts
    # END SOLUTION


def merge(tokens, pair, new):
    """The list `tokens` with every `pair` in it made one token `new`, from the left: with the pair (7, 7),
    [7, 7, 7] becomes [new, 7]. `tokens` itself stays as it is."""
    # BEGIN SOLUTION 2.2
    merged, i = [], 0
    while i < len(tokens):
        found = tuple(tokens[i:i + 2]) == tuple(pair)
        merged.append(new if found else tokens[i])
        i += 2 if found else 1
    return merged
    # END SOLUTION
