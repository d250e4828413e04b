"""The tokenizers, judged by tiktoken, tokenizers and transformers, and by definitions too slow to use."""

import base64
import gzip
import itertools
import json
import random
import sys
import time
from collections import Counter
from functools import cache

import pytest
import tiktoken
import tokenizers
from fetch import fetch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks, load_tiktoken_bpe
from tiktoken_ext import openai_public
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from minigpt.text import CharTokenizer, Tokenizer, bpe, default_corpus, patterns

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


@pytest.fixture(scope="session")
def trained():
    return Tokenizer.train(default_corpus(), 1024, special_tokens=["<|endoftext|>", "<mask>", "<pad>"])


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A function: the folder that holds this encoding as we save it."""

    @cache
    def save(encoding):
        folder = tmp_path_factory.mktemp(encoding)
        ours(encoding).save_pretrained(folder)
        return folder

    return save


def assert_same(texts, encode, judge):
    for text in texts:
        got, expected = list(encode(text)), list(judge(text))
        assert got == expected, f"{text!r}: {got} instead of {expected}"


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


def test_transformers_opens_what_is_saved(trained, tmp_path):
    for name, tokenizer in (("bpe", trained), ("char", CharTokenizer.train(default_corpus(), ["<mask>"]))):
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


def hugging_face(pre_tokenizer, ignore_merges=False):
    """A tokenizer made by `tokenizers` alone."""
    judge = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    judge.pre_tokenizer, judge.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    judge.train_from_iterator([default_corpus()[:20_000]], trainer)
    spec = json.loads(judge.to_str())
    spec["model"]["vocab"]["Ġxylophone"] = judge.get_vocab_size()  # no merges lead there
    judge = tokenizers.Tokenizer.from_str(json.dumps(spec))
    judge.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True), tokenizers.AddedToken("[R]", rstrip=True)])
    judge.add_tokens(["minigpt"])
    return judge


def split_by(pattern, behavior="isolated", invert=False):
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior, invert)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@pytest.mark.parametrize("merges", ["strings", "lists"])
@pytest.mark.parametrize("kind", ["gpt2", "llama3", "ignore_merges", "removed", "digits", "digit runs", "no pattern"])
def test_reads_tokenizer_json_of_tokenizers(kind, merges, tmp_path):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    judge = hugging_face(
        {
            "gpt2": byte_level,
            "llama3": split_by(LLAMA3),
            "ignore_merges": split_by(LLAMA3),
            "removed": split_by(LLAMA3, "removed", invert=True),
            "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
            "digit runs": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), byte_level]),
            "no pattern": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        }[kind],
        ignore_merges=kind == "ignore_merges",
    )
    spec = json.loads(judge.to_str())
    if merges == "strings":
        spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_size == judge.get_vocab_size()
    assert (len(tokenizer.encode("a xylophone")) == 2) == (kind == "ignore_merges")
    extra = [
        "a  <mask>  b",
        "[R] \n x [R]",
        "use minigpt's minigpt",
        "a xylophone",
        "<mask><|endoftext|>",
        default_corpus()[:5000],
    ]
    for text in [*extra, *random_texts(300, seed=3)]:
        expected = judge.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, "all") == expected, repr(text)
        assert tokenizer.decode(expected) == judge.decode(expected, skip_special_tokens=False)
        assert tokenizer.decode(expected, skip_special_tokens=True) == judge.decode(expected)


def changed(path, value):
    def change(spec):
        *parents, last = path.split(".")
        for parent in parents:
            spec = spec[parent]
        spec[last] = value

    return change


@pytest.mark.parametrize(
    "change, complaint",
    [
        (changed("model.type", "Unigram"), "model 'Unigram'"),
        (changed("model.byte_fallback", True), "'byte_fallback'"),
        (changed("model.end_of_word_suffix", "</w>"), "'end_of_word_suffix'"),
        (changed("normalizer", {"type": "NFC"}), "normalizer 'NFC'"),
        (changed("pre_tokenizer", {"type": "Metaspace"}), "pre-tokenizer 'Metaspace'"),
        (changed("pre_tokenizer.add_prefix_space", True), "add_prefix_space=True"),
        (changed("pre_tokenizer", None), "without pre-tokenizer"),
        (changed("model.merges", [["a", "QQ"]]), "merge 0 is a QQ"),
        (changed("model.vocab", {"▁the": 0}), "'▁the' is not spelled in bytes"),
        (lambda spec: spec["added_tokens"][0].update(single_word=True), "'single_word'"),
        (lambda spec: spec.pop("model"), "not a tokenizer.json: model is None, must be an object"),
        (changed("model.vocab", []), "vocab is [], must be an object of ids"),
        (changed("model.vocab", {}), "vocab is {}, must be an object of ids"),
        (changed("model.vocab.a", "5"), "the id of 'a' is '5', must be an integer in 0 .. 16777215"),
        (changed("model.vocab.a", True), "the id of 'a' is True, must be an integer"),
        (changed("model.vocab.a", -3), "the id of 'a' is -3, must be an integer"),
        (changed("model.vocab.a", 10**13), "the id of 'a' is 10000000000000, must be an integer"),
        (changed("model.vocab.\ud800", 5), "is not spelled in bytes"),
        (changed("model.merges", None), "merges is None, must be a list"),
        (changed("model.merges", [5]), "not a tokenizer.json (TypeError"),
        (changed("model.merges", [["a", "b", "c"]]), "merge 0 is ['a', 'b', 'c'], must be two tokens"),
        (changed("added_tokens", {"a": 1}), "added_tokens is {'a': 1}, must be a list"),
        (changed("added_tokens", [5]), "an added token is 5, must be an object"),
        (changed("added_tokens", [{"id": 1}]), "content is None, must be a text"),
        (changed("added_tokens", [{"id": 1, "content": ""}]), "content is '', must be a text that is not empty"),
        (changed("added_tokens", [{"id": "1", "content": "x"}]), "the id of 'x' is '1', must be an integer"),
        (changed("added_tokens", [{"id": 1, "content": "\ud800"}]), "not a tokenizer.json (UnicodeEncodeError"),
        (changed("normalizer", "NFC"), "normalizer is 'NFC', must be of a type"),
        (changed("normalizer", {"a": 1}), "normalizer is {'a': 1}, must be of a type"),
        (changed("pre_tokenizer", {"type": "Sequence", "pretokenizers": 5}), "not a tokenizer.json (TypeError"),
        (changed("decoder", []), "decoder is [], must be of a type"),
    ],
)
def test_refuses_other_tokenizer_json_by_name(change, complaint, trained, tmp_path):
    trained.save_pretrained(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    with pytest.raises(ValueError) as error:
        Tokenizer.from_pretrained(tmp_path)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_reads_rank_files(tmp_path):
    judge = tiktokens("gpt2")
    lines = [b"%s %d" % (base64.b64encode(token), rank) for token, rank in judge._mergeable_ranks.items()]
    (tmp_path / "r50k_base.tiktoken").write_bytes(b"\n".join(lines))
    (tmp_path / "mine.tiktoken.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    (tmp_path / "merges.txt").write_bytes(fetch("vocab.bpe").read_bytes())
    (tmp_path / "vocab.json").write_bytes(fetch("encoder.json").read_bytes())
    for tokenizer in (
        Tokenizer.from_file(tmp_path / "r50k_base.tiktoken"),
        Tokenizer.from_file(tmp_path / "mine.tiktoken.gz", encoding="gpt2"),
        Tokenizer.from_pretrained(tmp_path),  # merges.txt comes first
    ):
        assert tokenizer.vocab_size == 50257 and tokenizer.eos_token_id == 50256
        assert_same(random_texts(300, seed=4), tokenizer.encode, judge.encode_ordinary)
    with pytest.raises(ValueError, match="encoding: 'mine' is not known"):
        Tokenizer.from_file(tmp_path / "mine.tiktoken.gz")


@pytest.mark.parametrize(
    "name, content, complaint",
    [
        ("tokenizer.json", b"{", "must be JSON"),
        ("tokenizer.json", b"[" * 100_000, "must be JSON"),
        ("tokenizer.json", b"[1, 2]", "holds a list, must be a JSON object"),
        ("tokenizer.json", b"\xff\xfe", "must be JSON"),
        ("vocab.bpe", b"#version: 0.2\na b c\n", "two tokens on every line"),
        ("vocab.bpe", b"", "two tokens on every line"),
        ("gpt2.tiktoken", b"IQ== 0\nnonsense\n", "line 2 is 'nonsense'"),
        ("gpt2.tiktoken", b"IQ== 0\n", "all 256 single bytes"),
        ("gpt2.tiktoken.gz", b"not gzip", "damaged"),
        ("gpt2.tiktoken.gz", gzip.compress(b"IQ== 0\n")[:-5], "damaged"),
        ("tokenizer.model", b"x", "must be tokenizer.json"),
    ],
)
def test_refuses_broken_files(name, content, complaint, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as error:
        Tokenizer.from_file(tmp_path / name)
    assert "\n" not in str(error.value)


def test_refuses_a_vocabulary_of_words(tmp_path):
    CharTokenizer.train("abc", ["<mask>"]).save_pretrained(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {"added_tokens": None}), "utf-8")
    with pytest.raises(ValueError, match="tokenizer.json: a vocabulary of words without merges is not supported"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("config", [b"[1]", b'"a"', b"null", b'{"eos_token": [5]}', b'{"eos_token": {"content": [1]}}'])
def test_refuses_broken_roles(config, trained, tmp_path):
    trained.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(config)
    with pytest.raises(ValueError, match="tokenizer_config.json: (holds a .*, must be a JSON|eos_token is .*must)"):
        Tokenizer.from_pretrained(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Tokenizer.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        Tokenizer.from_pretrained(tmp_path)


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
def test_decode_inverts_encode(trained, text):
    assert trained.decode(trained.encode(text)) == text
    assert trained.decode_bytes(trained.encode(text)) == text.encode()


@settings(deadline=None)
@given(st.lists(st.integers(0, 1023)))
def test_any_ids_decode(trained, ids):
    assert trained.decode(ids) == trained.decode_bytes(ids).decode("utf-8", errors="replace")


def test_invalid_utf8_becomes_the_replacement_character(trained):
    euro = [bpe.BYTE_ORDER.index(byte) for byte in "€".encode()]
    assert trained.decode(euro) == "€"
    assert trained.decode([*euro[:2], *trained.encode("x")]) == "\ufffdx"


def test_special_tokens_are_text_unless_allowed(trained):
    text = "one<|endoftext|>two<mask>"
    assert not set(trained.encode(text)) & set(trained.special_tokens.values())
    ids = trained.encode(text, allowed_special=["<|endoftext|>"])
    assert ids.count(trained.eos_token_id) == 1 and trained.mask_token_id not in ids
    assert trained.encode(text, "all")[-1] == trained.mask_token_id
    assert trained.decode(trained.encode(text, "all")) == text
    assert trained.decode(trained.encode(text, "all"), skip_special_tokens=True) == "onetwo"
    with pytest.raises(ValueError, match="'<x>' is no special token"):
        trained.encode(text, allowed_special=["<x>"])
    with pytest.raises(TypeError, match='must be "all" or a collection'):
        trained.encode(text, allowed_special="<mask>")


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


def test_bad_arguments(trained):
    with pytest.raises(TypeError, match="text is bytes, must be str"):
        trained.encode(b"text")
    with pytest.raises(ValueError, match="text: character 2 is half of a surrogate pair"):
        trained.encode("ab\ud800")
    for id in (-1, 1024):
        with pytest.raises(ValueError, match=f"ids: {id} is no token"):
            trained.decode([id])
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


def test_the_cache_is_bounded(trained, monkeypatch):
    monkeypatch.setattr("minigpt.text.tokenizer.CACHED_PIECES", 10)
    for text in random_texts(50, seed=7):
        trained.encode(text)
        assert len(trained._cache) < 10 + 16 * 8


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
