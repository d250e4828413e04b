"""The tokenizers, judged by tiktoken, tokenizers and transformers, and by definitions too slow to use."""

import itertools
import random
import sys
import time
from collections import Counter
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_judges import (
    CLASSES,
    ENCODINGS,
    MOVED,
    assert_same,
    members_regex,
    members_tiktoken,
    members_tokenizers,
    ours,
    plane_texts,
    random_texts,
    tiktokens,
)
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from minigpt.text import CharTokenizer, Tokenizer, bpe, default_corpus, patterns


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A function: the folder that holds this encoding as we save it."""

    @cache
    def save(encoding):
        folder = tmp_path_factory.mktemp(encoding)
        ours(encoding).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_ids_are_those_of_tiktoken(encoding):
    tokenizer, judge = ours(encoding), tiktokens(encoding)
    assert tokenizer.vocab_size == judge.n_vocab
    assert tokenizer.eos_token_id == judge.eot_token
    assert tokenizer.special_tokens == judge._special_tokens
    assert_same(random_texts(3000), tokenizer.encode, judge.encode_ordinary)
    assert_same(plane_texts(step=97), tokenizer.encode, judge.encode_ordinary)
    assert_same([default_corpus()], tokenizer.encode, judge.encode_ordinary)
    assert_same(
        random_texts(1000, seed=1),
        lambda t: tokenizer.encode(t, "all"),
        lambda t: judge.encode(t, allowed_special="all"),
    )


def test_every_character_is_in_the_classes_where_the_judges_have_it():
    """... but for those that one side's Unicode has not assigned yet: no table can know them."""
    for judge in (members_tiktoken, members_tokenizers):
        excused = members_regex(r"\p{Cn}") | judge(r"\p{Cn}") | MOVED
        for pattern in CLASSES:
            assert members_regex(pattern) ^ judge(pattern) <= excused, pattern


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tokenizers_opens_what_is_saved(encoding, saved):
    judge = tokenizers.Tokenizer.from_file(str(saved(encoding) / "tokenizer.json"))
    again = Tokenizer.from_pretrained(saved(encoding))
    for texts in (random_texts(500, seed=2), plane_texts(step=997)):
        for text in texts:
            expected = judge.encode(text, add_special_tokens=False).ids
            assert ours(encoding).encode(text, "all") == expected, repr(text)
            assert again.encode(text, "all") == expected, repr(text)


def test_transformers_opens_what_is_saved(bpe_tokenizer, tmp_path):
    for name, tokenizer in (("bpe", bpe_tokenizer), ("char", CharTokenizer.train(default_corpus(), ["<mask>"]))):
        tokenizer.save_pretrained(tmp_path / name)
        judge = AutoTokenizer.from_pretrained(tmp_path / name)
        text = default_corpus()[:20000]
        assert tokenizer.encode(text) == judge(text)["input_ids"]
        assert judge.decode(tokenizer.encode(text)) == text
        for role in ("eos_token", "mask_token", "pad_token"):
            assert getattr(tokenizer, role + "_id") == getattr(judge, role + "_id")
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
        again = Tokenizer.from_pretrained(tmp_path / name)
        assert type(again) is type(tokenizer) and again.fingerprint() == tokenizer.fingerprint()


def test_a_tokenizer_says_what_it_is():
    tokenizer, chars = Tokenizer.train("aaaa", 258, pattern="a+"), CharTokenizer.train("cab")
    assert (len(tokenizer), len(chars)) == (tokenizer.vocab_size, 3) == (258, 3)
    assert repr(tokenizer) == "Tokenizer(258 tokens, special: <|endoftext|>)"
    assert repr(chars) == "CharTokenizer(3 tokens, special: none)"


def slow_merge(ids, merges):
    """Encoding as it is defined."""
    ids = list(ids)
    while True:
        ranked = [(merges[pair], i) for i, pair in enumerate(itertools.pairwise(ids)) if pair in merges]
        if not ranked:
            return ids
        (_, token), i = min(ranked)
        ids[i : i + 2] = [token]


def slow_train(pieces, count):
    """Training as it is defined: count everything, merge, start over."""
    words = [([bpe.BYTE_ORDER.index(byte) for byte in piece.encode()], n) for piece, n in pieces.items()]
    merges = []
    while len(merges) < count:
        counts = Counter()
        for word, n in words:
            for pair in itertools.pairwise(word):
                counts[pair] += n
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        merges.append(best)
        words = [(slow_merge(word, {best: (0, 255 + len(merges))}), n) for word, n in words]
    return merges


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, 3), max_size=40), st.permutations(list(itertools.product(range(6), repeat=2))))
def test_merge_follows_its_definition(ids, pairs):
    merges = {pair: (rank, 4 + rank % 5) for rank, pair in enumerate(pairs[:20])}
    assert bpe.encode_piece(ids, merges) == slow_merge(ids, merges)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text("abc", max_size=12), st.integers(1, 4), max_size=12), st.integers(0, 30))
def test_train_follows_its_definition(pieces, count):
    assert bpe.train(pieces, count) == slow_train(pieces, count)


def test_training_learns_what_tokenizers_learns():
    text, size = default_corpus(), 2048
    start = time.process_time()
    tokenizer = Tokenizer.train(text, size, special_tokens=[])
    assert time.process_time() - start < 10  # measured: 0.3 s
    judge = tokenizers.Tokenizer(models.BPE())
    judge.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    judge.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    assert tokenizer.vocab_size == judge.get_vocab_size() == size
    assert tokenizer.encode(text) == judge.encode(text).ids


def test_training_arguments():
    tokenizer = Tokenizer.train(["abab", "abab 12345"], 1000, special_tokens=["<pad>"], pattern="cl100k_base")
    assert tokenizer.vocab_size == 256 + 2 + 1  # "ab" and "abab": no other pair occurs twice
    assert tokenizer.encode("abab") == [257] and tokenizer.pad_token_id == 258 and tokenizer.eos_token_id is None
    with pytest.raises(ValueError, match="vocab_size is 256, must be at least 257"):
        Tokenizer.train("text", 256)
    with pytest.raises(ValueError, match="is not a regular expression"):
        Tokenizer.train("text", 300, pattern="(")
    with pytest.raises(TypeError, match="text is bytes, must be str"):
        Tokenizer.train([b"text"], 300)


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_decode_inverts_encode(bpe_tokenizer, text):
    assert bpe_tokenizer.decode(bpe_tokenizer.encode(text)) == text
    assert bpe_tokenizer.decode_bytes(bpe_tokenizer.encode(text)) == text.encode()


@settings(deadline=None)
@given(st.lists(st.integers(0, 1023)))
def test_any_ids_decode(bpe_tokenizer, ids):
    assert bpe_tokenizer.decode(ids) == bpe_tokenizer.decode_bytes(ids).decode("utf-8", errors="replace")


def test_invalid_utf8_becomes_the_replacement_character(bpe_tokenizer):
    euro = [bpe.BYTE_ORDER.index(byte) for byte in "€".encode()]
    assert bpe_tokenizer.decode(euro) == "€"
    assert bpe_tokenizer.decode([*euro[:2], *bpe_tokenizer.encode("x")]) == "\ufffdx"


def test_special_tokens_are_text_unless_allowed(bpe_tokenizer):
    text = "one<|endoftext|>two<mask>"
    assert not set(bpe_tokenizer.encode(text)) & set(bpe_tokenizer.special_tokens.values())
    ids = bpe_tokenizer.encode(text, allowed_special=["<|endoftext|>"])
    assert ids.count(bpe_tokenizer.eos_token_id) == 1 and bpe_tokenizer.mask_token_id not in ids
    assert bpe_tokenizer.encode(text, "all")[-1] == bpe_tokenizer.mask_token_id
    assert bpe_tokenizer.decode(bpe_tokenizer.encode(text, "all")) == text
    assert bpe_tokenizer.decode(bpe_tokenizer.encode(text, "all"), skip_special_tokens=True) == "onetwo"
    with pytest.raises(ValueError, match="'<x>' is no special token"):
        bpe_tokenizer.encode(text, allowed_special=["<x>"])
    with pytest.raises(TypeError, match='must be "all" or a collection'):
        bpe_tokenizer.encode(text, allowed_special="<mask>")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_stream_of_blocks_has_the_ids_of_the_whole(encoding):
    rng = random.Random(5)
    for text in [*random_texts(400, seed=5), "a" * 500 + " " * 500 + "\n" * 9 + " x" + "'" * 99 + "'re"]:
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(12)))
        blocks = [text[i:j] for i, j in itertools.pairwise([0, *cuts, len(text)])]
        for allowed in ((), "all"):
            streamed = itertools.chain.from_iterable(ours(encoding).encode_stream(blocks, allowed))
            assert list(streamed) == ours(encoding).encode(text, allowed), blocks


def test_a_stream_that_is_cut_inside_a_special_token():
    name = "<|of|many|pieces|indeed|>"
    tokenizer = Tokenizer.train("", 257, special_tokens=[name])
    for cut in range(len(name)):
        streamed = itertools.chain.from_iterable(tokenizer.encode_stream(["x" + name[:cut], name[cut:] + "x"], "all"))
        assert list(streamed) == tokenizer.encode(f"x{name}x", "all")


def test_the_longest_special_token_wins():
    tokenizer = Tokenizer.train("", 259, special_tokens=["<a>", "<a>b", "<a>bc"])
    assert tokenizer.encode("<a>bcd<a>", "all") == [258, *tokenizer.encode("d"), 256]


def test_very_long_pieces():
    rng = random.Random(6)
    for text in ("".join(rng.choices("abcdefghijklmnop", k=100_000)), "a" * 100_000, " " * 100_000, "\n" * 100_000):
        start = time.process_time()
        ids = ours("gpt2").encode(text)
        assert time.process_time() - start < 10  # measured: under 1 s; a quadratic merge would take minutes
        assert ids == tiktokens("gpt2").encode_ordinary(text)


def test_bad_arguments(bpe_tokenizer):
    with pytest.raises(TypeError, match="text is bytes, must be str"):
        bpe_tokenizer.encode(b"text")
    with pytest.raises(ValueError, match="text: character 2 is half of a surrogate pair"):
        bpe_tokenizer.encode("ab\ud800")
    for id in (-1, 1024):
        with pytest.raises(ValueError, match=f"ids: {id} is no token"):
            bpe_tokenizer.decode([id])
    with pytest.raises(ValueError, match="ids: 100256 is no token"):
        ours("cl100k_base").decode([100256])
    with pytest.raises(ValueError, match="mask_token is '<m>', must be one of"):
        Tokenizer([b"a"], {}, mask_token="<m>")
    with pytest.raises(ValueError, match="no token for byte 0x62"):
        Tokenizer([b"a"], {}).encode("ab")


def test_without_regex(monkeypatch):
    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(ImportError, match="pip install regex"):
        Tokenizer.train("text", 300)
    assert CharTokenizer.train("text").encode("text") == [1, 0, 2, 1]


def test_a_pattern_loses_nothing():
    compiled = patterns.compile_pattern(r"(\d)\d*|x*")
    assert patterns.split(compiled, "ab12c345xxd") == ["ab", "12", "c", "345", "xx", "d"]


def test_the_cache_is_bounded(bpe_tokenizer, monkeypatch):
    monkeypatch.setattr("minigpt.text.tokenizer.CACHED_PIECES", 10)
    for text in random_texts(50, seed=7):
        bpe_tokenizer.encode(text)
        assert len(bpe_tokenizer._cache) < 10 + 16 * 8


def test_char_tokenizer():
    tokenizer = CharTokenizer.train(["hello", "wörld\n"], special_tokens=["<mask>"])
    assert tokenizer.vocab_size == 10 and tokenizer.mask_token_id == 9 and tokenizer.eos_token_id is None
    assert tokenizer.encode("he\n") == [3, 2, 0]
    assert tokenizer.encode("h<mask>", "all") == [3, 9]
    assert tokenizer.decode(tokenizer.encode("wörld hello".replace(" ", ""))) == "wörldhello"
    with pytest.raises(ValueError, match="character 'x' is not among the 9 of the vocabulary"):
        tokenizer.encode("hex")
    with pytest.raises(ValueError, match="'ab' has 2 characters"):
        CharTokenizer(["ab"])
    for characters in ("aa", ""):
        with pytest.raises(ValueError, match="must be one or more, each of them once"):
            CharTokenizer(characters)


def test_char_tokenizer_json_gives_tokenizers_the_same_ids(tmp_path):
    tokenizer = CharTokenizer.train(default_corpus(), ["<mask>"])
    tokenizer.save_pretrained(tmp_path)
    judge = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = default_corpus()[:3000] + "<mask>"
    assert tokenizer.encode(text, "all") == judge.encode(text).ids
    assert judge.decode(tokenizer.encode(text, "all"), skip_special_tokens=False) == text


def test_default_corpus():
    text = default_corpus()
    assert len(text) > 300_000 and text.count(" the ") > 2000
    paragraphs = text.split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)  # so that validation does not meet training
    assert "\n***" not in text and " \n" not in text and "\n\n\n" not in text


def test_default_corpus_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(FileNotFoundError, match="without pydoc_data"):
        default_corpus()
