"""JSON from a file that anybody may have written: an object, or a ValueError that names the file."""

from __future__ import annotations

import json
from pathlib import Path

from .atomic import atomic_write


def read_json(path) -> dict:
    try:
        return parse_json(Path(path).read_bytes(), path)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None


def parse_json(data: bytes, where) -> dict:
    """`where` begins the message of the ValueError."""
    try:
        entry = json.loads(data.decode())
    except (ValueError, RecursionError) as error:          # not UTF-8, not JSON, a number or a nesting without end
        raise ValueError(f"{where}: must be JSON ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: holds a {type(entry).__name__}, must be a JSON object")
    return entry


def write_json(path, entry):
    with atomic_write(path) as file:
        file.write(json.dumps(entry, indent=2).encode() + b"\n")
