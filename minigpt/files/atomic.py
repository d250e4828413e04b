"""Writing so that a reader, or a computer that stops, never sees half a file."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path):
    """Opens a file beside `path` for writing bytes. When the block ends it is on the disk and takes the place of
    `path`; when the block fails it is removed, and what was at `path` stays."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
