r"""How a text is cut into pieces before BPE sees it: the patterns of GPT-2, GPT-4 and GPT-4o, and how they are applied.

Each is written so that Python's `regex`, Rust's and Oniguruma (inside `tokenizers`) read it alike: no possessive
quantifiers, no $. \p{L} is any letter, \p{N} any digit or number. What is a letter, each takes from its own Unicode
tables: a character that is newer than the oldest of them may be cut differently, and no other.
"""

from typing import NamedTuple

# contractions | a word | a number | other signs, each with one space before it | white space but for its last character
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Contractions in both cases; a word takes any one sign before it; numbers in threes; newlines stay with a sign.
# (tiktoken now cuts white space at the end of a text elsewhere; no token spans that cut, so the ids are the same.)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# A word is capitals, then small letters ("getName" is two), and keeps its contraction; a slash ends a run of signs.
_UPPER, _LOWER, _SUFFIX = (
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
)
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Encoding(NamedTuple):
    """What a file of ranks does not say: the pattern, and the ids of the special tokens."""

    pattern: str
    special_tokens: dict[str, int]


_FIM = {f"<|fim_{part}|>": 100258 + i for i, part in enumerate(("prefix", "middle", "suffix"))}
ENCODINGS = {
    "gpt2": Encoding(GPT2, {"<|endoftext|>": 50256}),
    "r50k_base": Encoding(GPT2, {"<|endoftext|>": 50256}),
    "p50k_base": Encoding(GPT2, {"<|endoftext|>": 50256}),
    "cl100k_base": Encoding(CL100K, {"<|endoftext|>": 100257, **_FIM, "<|endofprompt|>": 100276}),
    "o200k_base": Encoding(O200K, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
}


def compile_pattern(pattern: str):
    try:
        import regex
    except ImportError:
        raise ImportError("byte-level BPE needs the regex package: pip install regex") from None
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None


def split(pattern, text: str) -> list[str]:
    """Cut `text` into the matches of the compiled `pattern` and what lies between them; nothing is lost."""
    if not pattern.groups:
        pieces = pattern.findall(text)
        if sum(map(len, pieces)) == len(text):
            return pieces
    pieces, end = [], 0
    for match in pattern.finditer(text):
        if match[0]:
            pieces += text[end : match.start()], match[0]
            end = match.end()
    return [piece for piece in (*pieces, text[end:]) if piece]
