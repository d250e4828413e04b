"""What tests of several files want: a tokenizer that takes a moment to make; how this machine keeps submissions to the
course apart; an assignment that does not wait long."""

import shutil
from pathlib import Path

import pytest

from minigpt.text import Tokenizer, default_corpus


@pytest.fixture(scope="session")
def bpe_tokenizer():
    return Tokenizer.train(default_corpus(), 1024, special_tokens=["<|endoftext|>", "<mask>", "<pad>"])


@pytest.fixture(scope="session")
def isolation():
    from minigpt.course import student

    try:
        return student.isolation()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture
def impatient(tmp_path):
    """A1, which waits for no function longer than 2 seconds."""
    from minigpt.course.assignment import Assignment

    folder = tmp_path / "impatient"
    shutil.copytree(Path(__file__).parent.parent / "tutorials" / "assignments" / "a1_ops", folder)
    path = folder / "assignment.toml"
    path.write_text(path.read_text().replace("seconds = 10 ", "seconds = 2 "))
    return Assignment.load(folder)
