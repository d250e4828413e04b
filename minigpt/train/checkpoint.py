"""Checkpoints: folders that are complete or not there at all, whenever the process or the machine is stopped.

A checkpoint is written as .checkpoint-<step>.part, brought to the disk, and only then renamed to checkpoint-<step>:
renaming is the one thing a file system does all or nothing. One that is no longer wanted goes the same way back,
renamed first and then deleted. So whatever is called checkpoint-<step> can be trusted, and whatever is called
.<name>.part (files/atomic.py names them so too) is left over from a stop and can be deleted.

In a checkpoint: model.safetensors, config.json and the tokenizer's files (`transformers` opens these three),
optimizer.safetensors with both moments of AdamW, and trainer_state.json with the rest.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"


def listed(output_dir):
    """{step: folder} of the complete checkpoints, oldest first."""
    found = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


@contextlib.contextmanager
def locked(output_dir):
    """Keeps every other training out of output_dir; ValueError if one is at work there. The lock ends with the process,
    however that ends; the empty file stays. Windows has no such lock, and goes without."""
    with open(Path(output_dir) / LOCK, "ab") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"output_dir {output_dir} is in use by another training") from None
        yield


def write(output_dir, step, fill, ranks):
    """Makes checkpoint-<step>; `fill(folder)` writes its files, on every rank those that are its own. OSError, in one
    line, if there is no room for it: then nothing of it is left."""
    final = Path(output_dir) / f"checkpoint-{step}"
    temporary = _part(final)
    try:
        if ranks.rank == 0:
            temporary.mkdir()
        ranks.wait()
        fill(temporary)
        ranks.wait()
        if ranks.rank == 0:
            for path in temporary.iterdir():
                _to_disk(path)
            _to_disk(temporary)
            temporary.rename(final)
            _to_disk(final.parent)
        ranks.wait()
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = list(listed(output_dir).values())
        advice = f"{kept[-1]} is complete, training can go on from there" if kept else "there is no earlier checkpoint"
        raise OSError(f"{final} could not be written ({error.strerror or error}); {advice}") from error
    return final


def remove(folder):
    """Deletes a checkpoint."""
    temporary = _part(folder)
    folder.rename(temporary)
    shutil.rmtree(temporary)


def leftovers(output_dir):
    """What stopped processes left half-written."""
    return list(Path(output_dir).glob(".*.part"))


def remove_leftovers(output_dir):
    for path in leftovers(output_dir):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def holds_run(output_dir):
    """True if there is a run in the folder, False if it is empty or not there. ValueError if it holds other things."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return False
    names = sorted(path.name for path in set(folder.iterdir()) - {folder / LOCK, *leftovers(folder)})
    if names and not listed(folder) and "metrics.jsonl" not in names:
        raise ValueError(f"output_dir {folder} holds other things ({names[0]}); it must be empty, or hold a run to "
                         "resume")
    return bool(names)


def _part(path):
    return path.with_name(f".{path.name}.part")


def _to_disk(path):
    """Returns when a file's content, or a folder's list of names, is on the disk (which Windows has no call for)."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
