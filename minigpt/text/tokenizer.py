"""The byte-level BPE tokenizer: bpe.py applied to whole texts, with special tokens, a cache and files around it."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from os import PathLike
from typing import Literal, NamedTuple

from minigpt.text import bpe, patterns

CACHED_PIECES = 1 << 18  # then the cache starts afresh, so that a corpus of any size is encoded in bounded memory
STREAM_MARGIN = 4  # pieces at the end of a block that the text after it might still change

_SPACE = re.compile(r"\s*")

# Which added token has a role where a file does not say: the first of these that it holds.
ROLES = {
    "eos_token": ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "</s>", "<eos>"),
    "mask_token": ("<|mask|>", "<mask>", "[MASK]"),
    "pad_token": ("<|pad|>", "<pad>", "[PAD]"),
}


class AddedToken(NamedTuple):
    """A token that stands for a whole string, outside BPE. One that is not special is found in every text.

    With lstrip (rstrip) it swallows the white space before (after) it.
    """

    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False


class Tokenizer:
    """Byte-level BPE: any text becomes ids, and `decode(encode(text)) == text`.

    tokens: the bytes of each id, None where an id is not in use. merges: `merges[left, right] = (rank, token)`.
    patterns: regular expressions that cut a text into pieces, each cutting the pieces of the one before.
    added_tokens: `AddedToken` by its text. ignore_merges: a piece that is a token as a whole is that token, whatever
    the merges would make of it. eos_token, mask_token, pad_token: which added token has that role; where not given, one
    with a usual name (`<|endoftext|>`, `<mask>`, `<pad>`, ...) has it, else none.

    One is usually made by `Tokenizer.train`, `Tokenizer.from_file` or `Tokenizer.from_pretrained`.
    """

    kind = "bpe"

    def __init__(
        self,
        tokens: Sequence[bytes | None],
        merges: Mapping[bpe.Pair, tuple[int, int]],
        patterns: Sequence[str] = (patterns.GPT2,),
        added_tokens: Mapping[str, AddedToken] | None = None,
        ignore_merges: bool = False,
        eos_token: str | None = None,
        mask_token: str | None = None,
        pad_token: str | None = None,
    ):
        self.merges = merges
        self.patterns = tuple(patterns)
        self.added_tokens = dict(added_tokens or {})
        self.ignore_merges = ignore_merges
        self.vocab_size = max([len(tokens), *(token.id + 1 for token in self.added_tokens.values())])
        self.tokens = [*tokens, *[None] * (self.vocab_size - len(tokens))]
        self._token_ids = {token: id for id, token in enumerate(tokens) if token is not None}
        for text, token in self.added_tokens.items():
            self.tokens[token.id] = text.encode()
        self.eos_token, self.eos_token_id = self._role("eos_token", eos_token)
        self.mask_token, self.mask_token_id = self._role("mask_token", mask_token)
        self.pad_token, self.pad_token_id = self._role("pad_token", pad_token)
        self._byte_ids = [self._token_ids.get(bytes([byte])) for byte in range(256)]
        self._compiled = None
        self._cache = _Cache(self._encode_piece)

    @classmethod
    def train(
        cls,
        text: str | Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = ("<|endoftext|>",),
        pattern: str = "gpt2",
    ) -> "Tokenizer":
        """Learn a vocabulary from `text`, a string or several.

        Ids: the 256 bytes, the merges in order, the special tokens last, as GPT-2 has them. The vocabulary is smaller
        than `vocab_size` if the text runs out of pairs that occur twice. pattern: "gpt2", "cl100k_base", "o200k_base"
        or any regular expression.
        """
        count = vocab_size - len(bpe.BYTE_ORDER) - len(special_tokens)
        if count < 0:
            least = len(bpe.BYTE_ORDER) + len(special_tokens)
            raise ValueError(f"vocab_size is {vocab_size}, must be at least {least}: 256 bytes and the special tokens")
        if pattern in patterns.ENCODINGS:
            pattern = patterns.ENCODINGS[pattern].pattern
        compiled = patterns.compile_pattern(pattern)
        pieces: Counter[str] = Counter()
        for part in [text] if isinstance(text, str) else text:
            pieces.update(patterns.split(compiled, _check_text(part)))
        tokens = [bytes([byte]) for byte in bpe.BYTE_ORDER]
        merges = {}
        for rank, (left, right) in enumerate(bpe.train(pieces, count)):
            merges[left, right] = (rank, len(tokens))
            tokens.append(tokens[left] + tokens[right])
        added_tokens = {name: AddedToken(len(tokens) + i) for i, name in enumerate(special_tokens)}
        return cls(tokens, merges, (pattern,), added_tokens)

    @classmethod
    def from_file(cls, path: str | PathLike, encoding: str | None = None) -> "Tokenizer":
        """Read `tokenizer.json`, GPT-2's `vocab.bpe` (or `merges.txt`), or tiktoken's `<encoding>.tiktoken[.gz]`.

        encoding: which pattern and special tokens go with a .tiktoken file whose name does not say it.
        """
        from minigpt.text import files

        return files.read_file(path, encoding)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike) -> "Tokenizer":
        """Read the tokenizer in `folder`, of whichever kind: tokenizer.json, else another that `from_file` reads."""
        from minigpt.text import files

        return files.read_folder(folder)

    def save_pretrained(self, folder: str | PathLike) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `tokenizers` and transformers' AutoTokenizer open."""
        from minigpt.text import files

        files.write_folder(self, folder)

    def add_special_tokens(self, special_tokens_dict: Mapping[str, str]) -> int:
        """Give tokens their roles: {"mask_token": "<mask>"}, with the keys eos_token, mask_token and pad_token.

        Those that are not there yet are added at the end of the vocabulary; returns how many. The model needs a row for
        each: `model.resize_token_embeddings(len(tokenizer))`. Both are kept by save_pretrained.
        """
        before = self.vocab_size
        for role, text in special_tokens_dict.items():
            if role not in ROLES:
                raise ValueError(f"special_tokens_dict has the key {role!r}, must be one of {', '.join(ROLES)}")
            if not isinstance(text, str) or not text or text not in self.added_tokens and text.encode() in self.tokens:
                raise ValueError(f"{role} is {text!r}, must be a text that is no ordinary token")
        for role, text in special_tokens_dict.items():
            if text not in self.added_tokens:
                self.added_tokens[text] = AddedToken(self.vocab_size)
                self.tokens.append(text.encode())
                self.vocab_size += 1
            setattr(self, role, text)
            setattr(self, f"{role}_id", self.added_tokens[text].id)
        return self.vocab_size - before

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        special = ", ".join(self.special_tokens) or "none"
        return f"{type(self).__name__}({self.vocab_size} tokens, special: {special})"

    @property
    def special_tokens(self) -> dict[str, int]:
        return {text: token.id for text, token in self.added_tokens.items() if token.special}

    def encode(self, text: str, allowed_special: Literal["all"] | Collection[str] = ()) -> list[int]:
        """The ids of `text`.

        Text that looks like a special token is ordinary text, unless it is named in `allowed_special` ("all" names
        every one): so nobody who only supplies text can end a document or fake a role. No token is added at either end.
        """
        segments, last = self._segments(_check_text(text), self._added(allowed_special))
        ids: list[int] = []
        for segment, added in segments:
            ids += self._encode_pieces(self._split(segment))
            ids.append(added)
        return ids + self._encode_pieces(self._split(last))

    def encode_stream(
        self, blocks: Iterable[str], allowed_special: Literal["all"] | Collection[str] = ()
    ) -> Iterator[list[int]]:
        """Encode a text that comes in blocks; joined, the lists are exactly `encode` of the joined blocks.

        The last pieces of a block are kept for the next one, whose text may lengthen them. Memory is bounded by the
        longest block and the longest piece.
        """
        added = self._added(allowed_special)
        longest = max(map(len, added), default=0)
        rest = ""
        for block in blocks:
            segments, last = self._segments(rest + _check_text(block), added)
            pieces = self._split(last)
            keep, kept = 0, 0  # a special token that the block cuts in two must stay whole, too
            while keep < len(pieces) and (keep < STREAM_MARGIN or kept < longest):
                keep += 1
                kept += len(pieces[-keep])
            done = len(pieces) - keep
            ids: list[int] = []
            for segment, token in segments:
                ids += self._encode_pieces(self._split(segment))
                ids.append(token)
            yield ids + self._encode_pieces(pieces[:done])
            rest = "".join(pieces[done:])
        yield self.encode(rest, allowed_special)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`. Bytes that are not UTF-8 (a character cut in two, say) become U+FFFD."""
        return self.decode_bytes(ids, skip_special_tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], skip_special_tokens: bool = False) -> bytes:
        skip = set(self.special_tokens.values()) if skip_special_tokens else ()
        out = []
        for id in ids:
            if not 0 <= id < self.vocab_size or self.tokens[id] is None:
                raise ValueError(f"ids: {id} is no token, must be one of the {self.vocab_size} in the vocabulary")
            if id not in skip:
                out.append(self.tokens[id])
        return b"".join(out)

    def fingerprint(self) -> str:
        """A hash of everything that decides how a text is encoded."""
        parts = (
            self.kind,
            self.patterns,
            self.ignore_merges,
            self.tokens,
            self.added_tokens,
            list(self.merges.items()),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _split(self, text: str) -> Sequence[str]:
        if self._compiled is None:
            self._compiled = [patterns.compile_pattern(pattern) for pattern in self.patterns]
        pieces = [text]
        for pattern in self._compiled:
            pieces = list(chain.from_iterable(patterns.split(pattern, piece) for piece in pieces))
        return pieces

    def _encode_pieces(self, pieces: Iterable[str]) -> list[int]:
        if len(self._cache) > CACHED_PIECES:
            self._cache.clear()
        return list(chain.from_iterable(map(self._cache.__getitem__, pieces)))

    def _encode_piece(self, piece: str) -> list[int]:
        data = piece.encode()
        if self.ignore_merges and data in self._token_ids:
            return [self._token_ids[data]]
        ids = [self._byte_ids[byte] for byte in data]
        if None in ids:
            raise ValueError(f"text: the vocabulary has no token for byte 0x{data[ids.index(None)]:02x} of {piece!r}")
        return bpe.encode_piece(ids, self.merges)

    def _segments(self, text: str, added: Mapping[str, AddedToken]) -> tuple[list[tuple[str, int]], str]:
        """Cut `text` at added tokens: [(ordinary text, token that ends it), ...], the text that is left."""
        segments, end = [], 0
        if added:
            longest_first = sorted(added, key=len, reverse=True)
            for match in re.finditer("|".join(map(re.escape, longest_first)), text):
                token = added[match[0]]
                segment = text[end : match.start()]
                segments.append((segment.rstrip() if token.lstrip else segment, token.id))
                end = _SPACE.match(text, match.end()).end() if token.rstrip else match.end()
        return segments, text[end:]

    def _added(self, allowed_special: Literal["all"] | Collection[str]) -> dict[str, AddedToken]:
        """The added tokens to look for in a text."""
        if allowed_special == "all":
            return self.added_tokens
        if isinstance(allowed_special, str):
            raise TypeError(f'allowed_special is {allowed_special!r}, must be "all" or a collection of special tokens')
        for text in allowed_special:
            if text not in self.added_tokens:
                raise ValueError(
                    f"allowed_special: {text!r} is no special token, there are {', '.join(self.added_tokens)}"
                )
        return {t: token for t, token in self.added_tokens.items() if not token.special or t in allowed_special}

    def _role(self, role: str, text: str | None) -> tuple[str | None, int | None]:
        if text is None:
            text = next((usual for usual in ROLES[role] if usual in self.added_tokens), None)
        elif text not in self.added_tokens:
            raise ValueError(f"{role} is {text!r}, must be one of the added tokens: {', '.join(self.added_tokens)}")
        return text, self.added_tokens[text].id if text is not None else None


class _Cache(dict):
    """Ids by piece: what is not there yet is encoded and kept. Words repeat, so nearly all of a text is looked up."""

    def __init__(self, encode):
        super().__init__()
        self._encode = encode

    def __missing__(self, piece):
        ids = self._encode(piece)
        if len(piece) <= 64:
            self[piece] = ids
        return ids


def _check_text(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"text is {type(text).__name__}, must be str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text: character {error.start} is half of a surrogate pair, must be a Unicode character"
        ) from None
    return text
