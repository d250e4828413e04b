"""The files that tokenizers come from: Hugging Face's tokenizer.json, ranks, and broken ones of both."""

import base64
import gzip
import json

import pytest
import tokenizers
from fetch import fetch
from tokenizer_judges import LLAMA3, assert_same, random_texts, tiktokens
from tokenizers import decoders, models, pre_tokenizers, trainers

from minigpt.text import CharTokenizer, Tokenizer, default_corpus


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
def test_refuses_other_tokenizer_json_by_name(change, complaint, bpe_tokenizer, tmp_path):
    bpe_tokenizer.save_pretrained(tmp_path)
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
        ("gpt2.tiktoken.gz", gzip.compress(b"IQ== 0\n", mtime=0)[:-5], "damaged"),
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
def test_refuses_broken_roles(config, bpe_tokenizer, tmp_path):
    bpe_tokenizer.save_pretrained(tmp_path)
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
