"""TextDataset: the ids of the whole file, cached once and never stale, and one clear line for every bad input."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from minigpt.text import CharTokenizer, TextDataset, Tokenizer, dataset, default_corpus

TEXT = default_corpus()[:40_000] + "naïve €uro 日本語 👩‍👩‍👧\r\n\r\n   end"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT, 400, special_tokens=["<|endoftext|>"])


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """Nothing here writes to the home folder."""
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "text" / "corpus.txt"
    path.parent.mkdir()
    path.write_text(TEXT, "utf-8", newline="")
    return path


def caches(path):
    return sorted(other for other in path.parent.iterdir() if other != path)


def test_blocks_are_the_encoded_file(tokenizer, path):
    data = TextDataset(tokenizer, path, 32)
    ids = tokenizer.encode(TEXT)
    assert data.tokens.dtype == np.uint16 and isinstance(data.tokens, np.memmap)
    assert data.tokens.tolist() == ids and len(data) == len(ids) // 32
    blocks = list(data)
    assert all(block.dtype == np.int64 and block.shape == (32,) for block in blocks)
    assert np.concatenate(blocks).tolist() == ids[: len(data) * 32]
    assert data[-1].tolist() == blocks[-1].tolist()
    for index in (len(data), -len(data) - 1):
        with pytest.raises(IndexError, match="index is"):
            data[index]


@pytest.mark.parametrize("read_bytes", [1, 7, 4096])
def test_blocks_of_the_file_may_end_anywhere(tokenizer, path, monkeypatch, read_bytes):
    """In the middle of a character, a word, a line end, a special token."""
    text = TEXT[-600:] + "<|endoftext|>" + TEXT[-300:]
    path.write_text(text, "utf-8", newline="")
    monkeypatch.setattr(dataset, "READ_BYTES", read_bytes)
    assert TextDataset(tokenizer, path, 8).tokens.tolist() == tokenizer.encode(text)
    allowed = TextDataset(tokenizer, path, 8, allowed_special="all").tokens.tolist()
    assert allowed == tokenizer.encode(text, "all") and tokenizer.eos_token_id in allowed


def test_stride(tokenizer, path):
    ids = tokenizer.encode(TEXT)
    for stride in (1, 5, 32, 50):
        data = TextDataset(tokenizer, path, 32, stride=stride)
        starts = range(0, len(ids) - 31, stride)
        assert len(data) == len(starts)
        assert data[3].tolist() == ids[3 * stride : 3 * stride + 32]
        assert data[-1].tolist() == ids[starts[-1] : starts[-1] + 32]


def test_split(tokenizer, path):
    data = TextDataset(tokenizer, path, 32)
    train, validation = data.split(0.1)
    assert np.array_equal(np.concatenate([train.tokens, validation.tokens]), data.tokens)
    assert len(validation.tokens) == len(data.tokens) // 10 and train.block_size == validation.block_size == 32
    with pytest.raises(ValueError, match="fraction is 1, must be between 0 and 1"):
        data.split(1)
    with pytest.raises(ValueError, match="tokens for validation, must leave at least one block of 32"):
        data.split(0.0001)


def test_from_tokens():
    data = TextDataset.from_tokens([5, 6, 7, 8, 9], 2)
    assert [block.tolist() for block in data] == [[5, 6], [7, 8]]
    array = np.arange(10, dtype=np.uint16)
    assert np.shares_memory(TextDataset.from_tokens(array, 3).tokens, array)
    for tokens in (np.zeros((2, 2), int), [0.5, 1.5], "text"):
        with pytest.raises(TypeError, match="must be integers in one axis"):
            TextDataset.from_tokens(tokens, 2)
    with pytest.raises(ValueError, match="tokens has 0 tokens, must have at least one block of 2"):
        TextDataset.from_tokens([], 2)


def test_wide_ids(path):
    wide = CharTokenizer([chr(code) for code in range(130_000) if not 0xD800 <= code < 0xE000])
    data = TextDataset(wide, path, 32)
    assert data.tokens.dtype == np.uint32 and data.tokens.tolist() == wide.encode(TEXT)


def test_the_cache_is_used_and_never_stale(tokenizer, path, monkeypatch):
    first = TextDataset(tokenizer, path, 32)
    (cache,) = caches(path)
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_stream", None)  # whoever tokenizes again fails
        assert np.array_equal(TextDataset(tokenizer, path, 16).tokens, first.tokens)
    stat = path.stat()
    changed = TEXT.replace("the", "The", 1)
    path.write_text(changed, "utf-8", newline="")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size and time, other text
    assert TextDataset(tokenizer, path, 32).tokens.tolist() == tokenizer.encode(changed)
    other = Tokenizer.train(TEXT, 300)
    assert TextDataset(other, path, 32).tokens.tolist() == other.encode(changed)
    assert len(caches(path)) == 3 and cache in caches(path)


def refuse(monkeypatch, folder, code):
    """Writing into `folder` fails as the operating system would make it fail (root may write everywhere)."""
    write = dataset.atomic_write

    def refusing(path):
        if folder in (path.parent, None):
            raise OSError(code, os.strerror(code), str(path))
        return write(path)

    monkeypatch.setattr(dataset, "atomic_write", refusing)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written(tokenizer, path, cache_folder, monkeypatch, code):
    refuse(monkeypatch, path.parent, code)
    assert TextDataset(tokenizer, path, 32).tokens.tolist() == tokenizer.encode(TEXT)
    assert caches(path) == [] and len(list(cache_folder.iterdir())) == 1
    monkeypatch.setattr(Tokenizer, "encode_stream", None)
    assert len(TextDataset(tokenizer, path, 32)) > 0  # found again there


def test_no_folder_that_can_be_written(tokenizer, path, monkeypatch):
    refuse(monkeypatch, None, errno.EACCES)
    with pytest.raises(PermissionError, match="no place for the tokens: .*MINIGPT_CACHE") as error:
        TextDataset(tokenizer, path, 32)
    assert "\n" not in str(error.value)


def test_disk_full(tokenizer, path, monkeypatch):
    """The second write fails, as when the disk fills up on the way."""
    writes = itertools.count()
    fdopen = open

    def full(name, mode):
        file = fdopen(name, mode, buffering=0)

        class Full:
            __enter__, fileno, flush = lambda self: self, file.fileno, file.flush
            __exit__ = lambda self, *error: file.close()  # noqa: E731

            def write(self, data):
                if next(writes):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return file.write(data)

        return Full()

    monkeypatch.setattr("minigpt.files.atomic.open", full, raising=False)
    monkeypatch.setattr(dataset, "READ_BYTES", 4096)
    with pytest.raises(OSError, match="disk full: .* has no room for the tokens") as error:
        TextDataset(tokenizer, path, 32)
    assert "\n" not in str(error.value) and caches(path) == [] and next(writes) == 2


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "is empty"),
        (b"short", "tokens, must have at least one block of 32"),
        (b"abc\xff" + b"d" * 99, r"is not UTF-8 text: byte 0xff at offset 3"),
        (b"a" * 5000 + b"\xe2\x82" + b"b" * 99, r"is not UTF-8 text: byte 0xe2 at offset 5000"),
        (b"a" * 5000 + b"\xe2\x82", r"is not UTF-8 text: byte 0xe2 at offset 5000"),
        (b"a" * 4095 + b"\xe2\x82", r"is not UTF-8 text: byte 0xe2 at offset 4095"),
        (("text" * 99).encode("utf-16"), "is not UTF-8 text: byte 0xff at offset 0"),
    ],
)
def test_bad_texts(tokenizer, path, monkeypatch, content, complaint):
    monkeypatch.setattr(dataset, "READ_BYTES", 4096)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as error:
        TextDataset(tokenizer, path, 32)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not any(other.suffix == ".part" for other in caches(path))


def test_bad_arguments(tokenizer, path):
    with pytest.raises(FileNotFoundError, match="file_path: .*none.txt does not exist"):
        TextDataset(tokenizer, path.with_name("none.txt"), 32)
    with pytest.raises(FileNotFoundError, match="is a folder, must be a text file"):
        TextDataset(tokenizer, path.parent, 32)
    with pytest.raises(ValueError, match="block_size is 0, must be at least 1"):
        TextDataset(tokenizer, path, 0)
    with pytest.raises(ValueError, match="stride is -1, must be at least 1"):
        TextDataset(tokenizer, path, 32, stride=-1)


def test_a_text_that_changes_while_it_is_read(tokenizer, path, monkeypatch):
    read, passes = dataset._read, itertools.count()

    def changing(path):
        if next(passes) == 1:
            path.write_text(TEXT + "more", "utf-8")
        return read(path)

    monkeypatch.setattr(dataset, "_read", changing)
    with pytest.raises(ValueError, match="was changed while it was being read"):
        TextDataset(tokenizer, path, 32)
    assert caches(path) == []


BUILD = """
import sys, time
from minigpt.text import CharTokenizer, TextDataset, dataset
if sys.argv[2] == "slow":  # so that there is time to be killed in
    dataset.READ_BYTES = 1000
    encode = CharTokenizer.encode
    CharTokenizer.encode_stream = lambda self, blocks, allowed: (time.sleep(0.05) or encode(self, b) for b in blocks)
characters = sorted(set(open(sys.argv[1], encoding="utf-8", newline="").read()))
print("begin", flush=True)
print(int(TextDataset(CharTokenizer(characters), sys.argv[1], 32).tokens.astype(int).sum()))
"""


def build(path, speed):
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, path, speed],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )


def test_killed_on_the_way(path):
    process = build(path, "slow")
    assert process.stdout.readline() == "begin\n"
    deadline = time.monotonic() + 20
    while not caches(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [other.suffix for other in caches(path)] == [".part"]  # begun, and not taken for a cache
    tokenizer = CharTokenizer.train(TEXT)
    assert TextDataset(tokenizer, path, 32).tokens.tolist() == tokenizer.encode(TEXT)


def test_two_processes_at_once(path):
    processes = [build(path, "slow") for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == [f"begin\n{sum(CharTokenizer.train(TEXT).encode(TEXT))}\n"] * 2
    assert [other.suffix for other in caches(path)] == [".uint16"]


def test_memory_does_not_grow_with_the_text(path, monkeypatch):
    monkeypatch.setattr(dataset, "READ_BYTES", 1 << 16)
    tokenizer = CharTokenizer.train(TEXT)
    peaks = []
    for size in (1_000_000, 4_000_000):
        path.write_text((TEXT * 100)[:size], "utf-8", newline="")
        tracemalloc.start()
        TextDataset(tokenizer, path, 32)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] and peaks[1] < 8_000_000, peaks


@pytest.mark.parametrize("tqdm", ["tqdm", None])
def test_progress_of_long_texts(tokenizer, path, monkeypatch, capsys, tqdm):
    monkeypatch.setattr(dataset, "SHOW_PROGRESS_AFTER", 0.0)
    monkeypatch.setattr(dataset, "READ_BYTES", 4096)
    if tqdm is None:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    TextDataset(tokenizer, path, 32)
    shown = capsys.readouterr().err
    assert "tokenizing corpus.txt" in shown and "B/s" in shown and "%" in shown


def test_short_texts_show_no_progress(tokenizer, path, capsys):
    TextDataset(tokenizer, path, 32)
    assert capsys.readouterr().err == ""
