"""A text file as blocks of tokens: tokenized once, streaming, into a file of plain integers that is then memory-mapped.

The cache lies beside the text (or, where that folder cannot be written, in $MINIGPT_CACHE or ~/.cache/minigpt). Its
name holds a hash of the text's bytes and of the tokenizer: change either and it is simply not found. It takes its name
only when it is complete, so it is never half there, and two processes that make it at once both end with a good one.
"""

import codecs
import errno
import hashlib
import operator
import os
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from minigpt.files.atomic import atomic_write
from minigpt.text.tokenizer import Tokenizer

READ_BYTES = 1 << 20
SHOW_PROGRESS_AFTER = 2.0  # seconds


class TextDataset:
    """Blocks of `block_size` token ids from a UTF-8 file, as int64 arrays.

    The tokenizer's `encode` of the whole file; a block starts every `stride` tokens (None: every `block_size`, so that
    they do not overlap; 1: wherever one fits). An end too short for a block is in no item; `tokens` has it all.
    allowed_special: as in `Tokenizer.encode`.

    Raises FileNotFoundError, ValueError (empty, not UTF-8, shorter than one block) or OSError (no place for the cache).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        file_path: str | os.PathLike,
        block_size: int,
        stride: int | None = None,
        allowed_special: Literal["all"] | Collection[str] = (),
    ):
        path = Path(file_path)
        if not path.is_file():
            what = "is a folder, must be a text file" if path.is_dir() else "does not exist"
            raise FileNotFoundError(f"file_path: {path} {what}")
        if path.stat().st_size == 0:
            raise ValueError(f"file_path: {path} is empty")
        self._blocks(_tokenize_once(tokenizer, path, allowed_special), block_size, stride, f"file_path: {path}")

    @classmethod
    def from_tokens(cls, tokens, block_size: int, stride: int | None = None) -> "TextDataset":
        """Blocks of ids that are already there: a list, or an integer array of one axis, which is not copied."""
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise TypeError(f"tokens is {tokens.dtype} of shape {tokens.shape}, must be integers in one axis")
        dataset = cls.__new__(cls)
        dataset._blocks(tokens, block_size, stride, "tokens")
        return dataset

    def _blocks(self, tokens: np.ndarray, block_size: int, stride: int | None, source: str) -> None:
        stride = block_size if stride is None else stride
        for name, value in (("block_size", block_size), ("stride", stride)):
            if operator.index(value) < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        if len(tokens) < block_size:
            raise ValueError(f"{source} has {len(tokens)} tokens, must have at least one block of {block_size}")
        self.tokens, self.block_size, self.stride = tokens, block_size, stride

    def __len__(self) -> int:
        return (len(self.tokens) - self.block_size) // self.stride + 1

    def __repr__(self) -> str:
        return f"TextDataset({len(self)} blocks of {self.block_size}, stride {self.stride}, {len(self.tokens)} tokens)"

    def __getitem__(self, index: int) -> np.ndarray:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index is {index}, must be in {-len(self)} .. {len(self) - 1}")
        start = index % len(self) * self.stride
        return self.tokens[start : start + self.block_size].astype(np.int64)

    def split(self, fraction: float = 0.1) -> tuple["TextDataset", "TextDataset"]:
        """(training, validation): the last `fraction` of the tokens is for validation, and none is in both."""
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}, must be between 0 and 1")
        cut = len(self.tokens) - int(len(self.tokens) * fraction)
        parts = []
        for name, tokens in (("training", self.tokens[:cut]), ("validation", self.tokens[cut:])):
            if len(tokens) < self.block_size:
                raise ValueError(
                    f"fraction: {fraction} leaves {len(tokens)} of {len(self.tokens)} tokens for {name}, "
                    f"must leave at least one block of {self.block_size}"
                )
            parts.append(TextDataset.from_tokens(tokens, self.block_size, self.stride))
        return parts[0], parts[1]


def _tokenize_once(tokenizer: Tokenizer, path: Path, allowed_special) -> np.ndarray:
    """The ids of the text, memory-mapped from its cache, which is made if it is not there."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    text_hash = hashlib.sha256()
    for block in _read(path):
        text_hash.update(block)
    special = allowed_special if allowed_special == "all" else sorted(allowed_special)
    key = hashlib.sha256(f"{text_hash.hexdigest()} {tokenizer.fingerprint()} {special}".encode()).hexdigest()
    name = f"{path.name}.{key[:16]}.{dtype.name}"

    fallback = os.environ.get("MINIGPT_CACHE") or Path.home() / ".cache" / "minigpt"
    folders = [path.parent, Path(fallback)]
    cache = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if cache is None:
        ids = _encode_file(tokenizer, path, allowed_special, text_hash.digest())
        cache = _write_first_possible([folder / name for folder in folders], (np.array(i, dtype) for i in ids))
    return np.memmap(cache, dtype, mode="r")


def _write_first_possible(paths: list[Path], arrays: Iterator[np.ndarray]) -> Path:
    """Write the arrays, one after the other, to the first of `paths` whose folder can be written."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                for array in arrays:
                    file.write(array)
            return path
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(
                    f"disk full: {path.parent} has no room for the tokens (MINIGPT_CACHE names another folder)"
                ) from None
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
                raise
    folders = " and ".join(str(path.parent) for path in paths)
    raise PermissionError(f"no place for the tokens: {folders} cannot be written (MINIGPT_CACHE names another folder)")


def _encode_file(tokenizer: Tokenizer, path: Path, allowed_special, text_hash: bytes) -> Iterator[list[int]]:
    """The ids of the text, block by block, with progress shown on stderr if it takes long."""
    seen = hashlib.sha256()

    def texts():
        """The file in blocks of whole characters."""
        decoded, rest = 0, b""
        with _progress(f"tokenizing {path.name}", path.stat().st_size) as advance:
            for block in _read(path):
                seen.update(block)
                rest += block
                try:
                    text, used = codecs.utf_8_decode(rest, "strict", len(block) < READ_BYTES)
                except UnicodeDecodeError as error:
                    what = f"byte 0x{rest[error.start]:02x} at offset {decoded + error.start} ({error.reason})"
                    raise ValueError(f"file_path: {path} is not UTF-8 text: {what}") from None
                decoded, rest = decoded + used, rest[used:]
                yield text
                advance(len(block))

    yield from tokenizer.encode_stream(texts(), allowed_special)
    if seen.digest() != text_hash:
        raise ValueError(f"file_path: {path} was changed while it was being read")


def _read(path: Path) -> Iterator[bytes]:
    """The file in blocks of READ_BYTES; the last is shorter, and may be empty."""
    with path.open("rb") as file:
        while True:
            block = file.read(READ_BYTES)
            yield block
            if len(block) < READ_BYTES:
                return


@contextmanager
def _progress(what: str, total: int):
    """Gives a function to call with the bytes just done. Shows tqdm's bar, or a plain line where tqdm is missing."""
    try:
        from tqdm import tqdm
    except ImportError:
        line = _ProgressLine(what, total)
        yield line.advance
        line.close()
    else:
        with tqdm(total=total, desc=what, unit="B", unit_scale=True, delay=SHOW_PROGRESS_AFTER, leave=False) as bar:
            yield bar.update


class _ProgressLine:
    def __init__(self, what: str, total: int):
        self.what, self.total, self.done = what, total, 0
        self.start = time.monotonic()
        self.next = self.start + SHOW_PROGRESS_AFTER

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now >= self.next:
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate
            print(
                f"\r{self.what}: {self.done / self.total:.0%}, {rate / 1e6:.1f} MB/s, {left:.0f} s left ",
                end="",
                file=sys.stderr,
            )
            self.next = now + 1

    def close(self) -> None:
        if self.next > self.start + SHOW_PROGRESS_AFTER:
            print(file=sys.stderr)
