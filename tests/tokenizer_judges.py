"""What tokenizers are tried on, texts made of everything that implementations disagree about, and who judges them:
tiktoken with its own patterns, and ranks from local files."""

import gzip
import random
from functools import cache

import pytest
import tiktoken
import tokenizers
from fetch import fetch
from tiktoken.load import data_gym_to_mergeable_bpe_ranks, load_tiktoken_bpe
from tiktoken_ext import openai_public
from tokenizers import pre_tokenizers

from minigpt.text import Tokenizer, patterns

ENCODINGS = ["gpt2", "cl100k_base", "o200k_base"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What random texts are made of: everything a pattern tells apart, and what implementations like to disagree on.
WHITE_SPACE = [
    chr(c) for c in [*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F]
]
WHITE_SPACE += ["\u205f", "\u3000", "\r\n", "  ", "\n\n", " \n ", "\t\t", "        "]
NOT_QUITE_SPACE = ["\x00", "\x1c", "\x1f", "\u180e", "\u200b", "\u200d", "\u2060", "\ufeff"]
NUMBERS = ["0", "7", "12", "1234567", "٣", "९", "𝟘", "²", "½", "Ⅷ", "一", "１２"]
WORDS = [
    "a",
    "Hello",
    "world",
    "HTMLParser",
    "don't",
    "ǅ",
    "ß",
    "ſ",
    "İ",
    "naïve",
    "ʰ",
    "日本語",
    "한국어",
    "שלום",
    "العربية",
    "ไทย",
]
WORDS += [
    "न्दी",
    "e\u0301",
    "\u0301",
    "\u20dd",
    "ﬀ",
    "def f(x):",
    "x+=1;",
    "->",
    "//",
    "/*",
    "</div>",
    "a_b",
    "\\n",
    "##",
]
CONTRACTIONS = ["'s", "'S", "'ll", "'LL", "'Re", "'vE", "'d", "'M", "'ſ", "’s", "'", "''", "I'm", "WE'LL"]
SIGNS = [
    ".",
    "...",
    "!?",
    "$",
    "€",
    "—",
    "👍",
    "👩‍👩‍👧",
    "🏳️‍🌈",
    "🇩🇪",
    "☃",
    "\ue000",
    "\U000f0000",
    "\U0010ffff",
    "\u0378",
    "\uffff",
]
SPECIAL = ["<|endoftext|>", "<|endof", "<|endofprompt|>", "<|fim_prefix|>", "<|", "|>"]
ATOMS = [WHITE_SPACE, NOT_QUITE_SPACE, NUMBERS, WORDS, CONTRACTIONS, SIGNS, SPECIAL]


EVERY_CHARACTER = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
CLASSES = [r"\p{Lu}", r"\p{Ll}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{M}", r"\p{N}", r"\s", r"(?i:[sdmt])"]
MOVED = {"\u0295"}  # from small letters to other letters, in Unicode 17 or 18


@cache
def members_regex(pattern):
    return set(patterns.compile_pattern(pattern).findall(EVERY_CHARACTER))


def members_tiktoken(pattern):
    """What tiktoken's pattern does not match it drops: the text that comes back is the members."""
    byte_ranks = {bytes([byte]): byte for byte in range(256)}
    judge = tiktoken.Encoding("class", pat_str=pattern + "+", mergeable_ranks=byte_ranks, special_tokens={})
    return set(judge.decode(judge.encode_ordinary(EVERY_CHARACTER)))


def members_tokenizers(pattern):
    split = pre_tokenizers.Split(tokenizers.Regex(pattern + "+"), "removed", invert=True)
    parts = [EVERY_CHARACTER[i : i + 20000] for i in range(0, len(EVERY_CHARACTER), 20000)]
    return set("".join(piece for part in parts for piece, _ in split.pre_tokenize_str(part)))


@cache
def unicode_differs():
    """The characters that tiktoken's tables class otherwise than those of `regex`, because their Unicode is older."""
    return set().union(*(members_regex(pattern) ^ members_tiktoken(pattern) for pattern in CLASSES))


def any_character(rng):
    while True:
        character = rng.choice(EVERY_CHARACTER)
        if character not in unicode_differs():
            return character


def random_texts(count, seed=0):
    rng = random.Random(seed)
    yield ""
    for _ in range(count):
        kinds = rng.choices([*ATOMS, None], k=rng.randrange(1, 16))
        yield "".join(any_character(rng) if kind is None else rng.choice(kind) for kind in kinds)


def plane_texts(step):
    """Every step-th code point of every plane, each between letters, digits, signs and spaces."""
    for start in range(0, 0x110000, 64 * step):
        characters = EVERY_CHARACTER[start : start + 64 * step : step]
        yield " x".join(f"a{c}b 1{c}2 {c}!{c} {c}'ll" for c in characters if c not in unicode_differs())


@cache
def ours(encoding):
    return Tokenizer.from_file(fetch("vocab.bpe" if encoding == "gpt2" else f"{encoding}.tiktoken.gz"))


@cache
def tiktokens(encoding):
    """tiktoken's own Encoding: its patterns and special tokens, with ranks from local files."""
    if encoding == "gpt2":
        ranks = data_gym_to_mergeable_bpe_ranks(str(fetch("vocab.bpe")), str(fetch("encoder.json")))
    else:
        packed = fetch(f"{encoding}.tiktoken.gz")
        plain = packed.with_suffix("")
        plain.write_bytes(gzip.decompress(packed.read_bytes()))
        ranks = load_tiktoken_bpe(str(plain))
    with pytest.MonkeyPatch.context() as patch:
        for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
            patch.setattr(openai_public, loader, lambda *args, **kwargs: ranks)
        return tiktoken.Encoding(**getattr(openai_public, encoding)())


def assert_same(texts, encode, judge):
    for text in texts:
        got, expected = list(encode(text)), list(judge(text))
        assert got == expected, f"{text!r}: {got} instead of {expected}"
