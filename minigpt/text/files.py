"""Tokenizer files: GPT-2's vocab.bpe, tiktoken's ranks, and Hugging Face's tokenizer.json, which is also written.

A tokenizer.json can hold far more than byte-level BPE. What it asks for beyond that is refused by name, because ids
that are nearly right are worse than none. Its post-processor is passed over: it adds tokens around a text, and
`Tokenizer.encode` adds none.
"""

import base64
import binascii
import gzip
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from minigpt.files.atomic import atomic_write
from minigpt.files.json_file import read_json
from minigpt.text import bpe, patterns
from minigpt.text.char import CharTokenizer
from minigpt.text.tokenizer import ROLES, AddedToken, Tokenizer

FOLDER_FILES = ("tokenizer.json", "vocab.bpe", "merges.txt", "*.tiktoken", "*.tiktoken.gz")
MOST_TOKENS = 1 << 24  # an id beyond is a mistake, and would cost its weight in memory
VOCABULARY_OF = {"vocab.bpe": "encoder.json", "merges.txt": "vocab.json"}


def read_folder(folder: str | os.PathLike) -> Tokenizer:
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: there is no folder {folder}")
    for name in FOLDER_FILES:
        for path in sorted(folder.glob(name)):
            return read_file(path)
    raise FileNotFoundError(f"folder: {folder} holds no tokenizer, must hold one of {', '.join(FOLDER_FILES)}")


def read_file(path: str | os.PathLike, encoding: str | None = None) -> Tokenizer:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {path}")
    if path.suffix == ".json":
        return _from_json(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            text = file.read().decode("utf-8")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: damaged, or not a tokenizer file ({error})") from None
    if path.name.removesuffix(".gz").endswith(".tiktoken"):
        return _from_tiktoken(text, path, encoding or path.name.split(".")[0])
    if path.name.endswith((".bpe", ".txt")):
        return _from_merges(text, path)
    raise ValueError(f"path: {path.name} must be tokenizer.json, vocab.bpe, merges.txt, *.tiktoken or *.tiktoken.gz")


def _from_merges(text: str, path: Path) -> Tokenizer:
    """GPT-2's own format: two tokens a line. The ids follow from it; where a vocabulary lies beside, it says them."""
    lines = text.splitlines()
    lines = lines[1:] if lines and lines[0].startswith("#version") else lines
    pairs = [line.split(" ") for line in lines if line]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path}: not a file of merges, which has two tokens on every line")
    beside = path.with_name(VOCABULARY_OF.get(path.name, "encoder.json"))
    if beside.is_file():
        vocab = read_json(beside)
        _check_ids(vocab, beside)
    else:
        vocab = {bpe.BYTE_TO_CHAR[byte]: id for id, byte in enumerate(bpe.BYTE_ORDER)}
        for left, right in pairs:
            vocab.setdefault(left + right, len(vocab))
        vocab["<|endoftext|>"] = len(vocab)
    special = {name: AddedToken(vocab[name]) for usual in ROLES.values() for name in usual if name in vocab}
    return Tokenizer(*_tables(vocab, pairs, special, path), added_tokens=special)


def _from_tiktoken(text: str, path: Path, encoding: str) -> Tokenizer:
    """tiktoken's format: a token in base64 and its rank, which is also its id, on every line.

    There are no pairs in it: any two neighbours merge if their bytes joined are a token. So every way to cut a token
    into two others becomes a merge, of the token's rank; and a piece that is a token as a whole is taken at once.
    """
    if encoding not in patterns.ENCODINGS:
        known = ", ".join(patterns.ENCODINGS)
        raise ValueError(f"encoding: {encoding!r} is not known; say which of {known} the pattern of {path.name} is")
    ids = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            token, rank = line.split()
            ids[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path}: line {number} is {line[:40]!r}, must be a token in base64 and its rank"
            ) from None
    if not ids or any(bytes([byte]) not in ids for byte in range(256)):
        raise ValueError(f"{path}: must hold all 256 single bytes")
    tokens = [None] * (max(ids.values()) + 1)
    merges = {}
    for token, rank in ids.items():
        tokens[rank] = token
        for i in range(1, len(token)):
            left, right = ids.get(token[:i]), ids.get(token[i:])
            if left is not None and right is not None:
                merges[left, right] = (rank, rank)
    pattern, special = patterns.ENCODINGS[encoding]
    added_tokens = {name: AddedToken(id) for name, id in special.items()}
    return Tokenizer(tokens, merges, (pattern,), added_tokens, ignore_merges=True)


def _from_json(path: Path) -> Tokenizer:
    spec = read_json(path)
    _check_spec(spec, path)
    try:
        return _from_spec(spec, path)
    except (KeyError, TypeError, AttributeError, OverflowError, UnicodeError) as error:
        raise ValueError(f"{path}: not a tokenizer.json ({type(error).__name__}: {error})") from None


def _check_spec(spec: dict, path: Path) -> None:
    """ValueError if a part of it that is read here is not of the type it must be."""

    def check(right, name, value, must):
        if not right:
            raise ValueError(f"{path}: not a tokenizer.json: {name} is {value!r}, must be {must}")

    model, added = spec.get("model"), spec.get("added_tokens") or []
    check(isinstance(model, dict), "model", model, "an object")
    check(isinstance(model.get("vocab"), dict) and model["vocab"], "vocab", model.get("vocab"), "an object of ids")
    check(isinstance(model.get("merges"), list), "merges", model.get("merges"), "a list")
    check(isinstance(added, list), "added_tokens", added, "a list")
    ids = dict(model["vocab"])
    for token in added:
        check(isinstance(token, dict), "an added token", token, "an object")
        content = token.get("content")
        check(isinstance(content, str) and content, "content", content, "a text that is not empty")
        ids[content] = token.get("id")
    _check_ids(ids, path)
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        part = spec.get(name)
        check(part is None or isinstance(part, dict) and isinstance(part.get("type"), str), name, part, "of a type")


def _check_ids(ids: dict, path: Path) -> None:
    for token, id in ids.items():
        if type(id) is not int or not 0 <= id < MOST_TOKENS:
            raise ValueError(f"{path}: the id of {token!r} is {id!r}, must be an integer in 0 .. {MOST_TOKENS - 1}")


def _from_spec(spec: dict, path: Path) -> Tokenizer:
    model = spec["model"]
    kind, vocab = model.get("type", "BPE"), model["vocab"]

    def refuse(what):
        raise ValueError(f"{path}: {what} is not supported, only byte-level BPE as of GPT-2, GPT-4 and Llama 3 is")

    if kind != "BPE":
        refuse(f"model {kind!r}")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            refuse(f"model option {option!r}")
    if spec.get("normalizer"):
        refuse(f"normalizer {spec['normalizer']['type']!r}")
    added = {}
    for token in spec.get("added_tokens") or ():
        if token.get("single_word"):
            refuse(f"added token {token['content']!r} with 'single_word'")
        flags = (token.get(flag, False) for flag in ("special", "lstrip", "rstrip"))
        added[token["content"]] = AddedToken(token["id"], *flags)
    roles = _read_roles(path.with_name("tokenizer_config.json"), added)

    if spec.get("pre_tokenizer") is None and (spec.get("decoder") or {}).get("type") == "Fuse" and not model["merges"]:
        characters = sorted((token for token in vocab if token not in added), key=vocab.get)
        if [vocab[token] for token in characters] == list(range(len(characters))):
            if max(map(len, characters), default=0) > 1:
                refuse("a vocabulary of words without merges")
            return CharTokenizer(characters, added, **roles)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    tables = _tables(vocab, pairs, added, path)
    split = tuple(_read_patterns(spec.get("pre_tokenizer"), refuse))
    return Tokenizer(*tables, split, added, bool(model.get("ignore_merges")), **roles)


def _read_patterns(pre_tokenizer: dict | None, refuse) -> Iterator[str]:
    """The patterns that a tokenizer.json's pre-tokenizer cuts by; it must end in ByteLevel."""
    steps = pre_tokenizer and (
        pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    )
    if not steps or steps[-1]["type"] != "ByteLevel":
        refuse(f"pre-tokenizer {steps[-1]['type']!r}" if steps else "a model without pre-tokenizer")
    for step in steps:
        if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
            if step.get("use_regex", True):
                yield patterns.GPT2
        elif step["type"] == "Digits":
            yield r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
        elif step["type"] == "Split" and (step["behavior"], step.get("invert", False)) in (
            ("Isolated", False),
            ("Removed", True),  # keeps only what matches, which is all of it for patterns that cover every text
        ):
            pattern = step["pattern"]
            yield pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])
        else:
            options = ", ".join(f"{key}={value!r}" for key, value in step.items() if key not in ("type", "pattern"))
            refuse(f"pre-tokenizer {step['type']!r} ({options})")


def _tables(vocab: dict[str, int], pairs: list, added: dict[str, AddedToken], path: Path):
    """`tokens` and `merges` of a Tokenizer, from their spelling in printable characters."""
    tokens: list[bytes | None] = [None] * (max(vocab.values()) + 1)
    for text, id in vocab.items():
        if text in added:
            continue
        try:
            tokens[id] = bytes([bpe.CHAR_TO_BYTE[char] for char in text])
        except KeyError:
            raise ValueError(f"{path}: token {text!r} is not spelled in bytes: this is no byte-level BPE") from None
    merges = {}
    for rank, pair in enumerate(pairs):
        if len(pair) != 2:
            raise ValueError(f"{path}: merge {rank} is {pair!r}, must be two tokens")
        left, right = pair
        try:
            merges[vocab[left], vocab[right]] = (rank, vocab[left + right])
        except KeyError as error:
            raise ValueError(f"{path}: merge {rank} is {left} {right}, but {error} is not in the vocabulary") from None
    return tokens, merges


def _read_roles(path: Path, added: dict[str, AddedToken]) -> dict[str, str]:
    """Which token ends a text, masks and pads, from tokenizer_config.json if it is there."""
    if not path.exists():
        return {}
    config, roles = read_json(path), {}
    for role in ROLES:
        name = config.get(role)
        name = name.get("content") if isinstance(name, dict) else name
        if not isinstance(name, str | None):
            raise ValueError(f"{path}: {role} is {config[role]!r}, must be a text or an object with a text as content")
        if name in added:
            roles[role] = name
    return roles


def write_folder(tokenizer: Tokenizer, folder: str | os.PathLike) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {role: getattr(tokenizer, role) for role in ROLES if getattr(tokenizer, role) is not None}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, content in (("tokenizer.json", _to_json(tokenizer)), ("tokenizer_config.json", config)):
        with atomic_write(folder / name) as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=1).encode())


def _to_json(tokenizer: Tokenizer) -> dict:
    if isinstance(tokenizer, CharTokenizer):
        spell, pre_tokenizer, decoder = bytes.decode, None, {"type": "Fuse"}
    else:
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        spell, pre_tokenizer, decoder = _spell, byte_level | {"use_regex": True}, byte_level | {"use_regex": True}
        if tokenizer.patterns != (patterns.GPT2,):
            split = {"type": "Split", "behavior": "Isolated", "invert": False}
            steps = [split | {"pattern": {"Regex": pattern}} for pattern in tokenizer.patterns]
            pre_tokenizer = {"type": "Sequence", "pretokenizers": [*steps, byte_level | {"use_regex": False}]}
    added = {token.id: (text, token) for text, token in tokenizer.added_tokens.items()}
    tokens = {id: token for id, token in enumerate(tokenizer.tokens) if token is not None}
    vocab = {added[id][0] if id in added else spell(token): id for id, token in tokens.items()}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"content": text, "single_word": False, "normalized": False, **token._asdict()}
            for _, (text, token) in sorted(added.items())
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": tokenizer.ignore_merges,
            "vocab": vocab,
            "merges": [[spell(tokens[left]), spell(tokens[right])] for left, right in _one_merge_a_token(tokenizer)],
        },
    }


def _spell(token: bytes) -> str:
    return "".join(map(bpe.BYTE_TO_CHAR.__getitem__, token))


def _one_merge_a_token(tokenizer: Tokenizer) -> list[bpe.Pair]:
    """The merges by rank; of several with one rank (see `_from_tiktoken`) the one that encoding comes to.

    That is the pair left when the token's own bytes are encoded with all merges of lower rank. No other pair of that
    rank can be met: inside a token the merges go the same way whatever stands around it.
    """
    by_rank: dict[tuple[int, int], list[bpe.Pair]] = {}
    for pair, merge in tokenizer.merges.items():
        by_rank.setdefault(merge, []).append(pair)
    byte_ids = {token[0]: id for id, token in enumerate(tokenizer.tokens) if token is not None and len(token) == 1}
    kept: dict[bpe.Pair, tuple[int, int]] = {}
    for merge, pairs in sorted(by_rank.items()):
        if len(pairs) > 1:
            pairs = [tuple(bpe.encode_piece([byte_ids[byte] for byte in tokenizer.tokens[merge[1]]], kept))]
        if len(pairs[0]) == 2:  # else no merges lead to it: it is only ever a piece as a whole
            kept[pairs[0]] = merge
    return list(kept)
