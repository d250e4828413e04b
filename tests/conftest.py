"""A tokenizer that takes a moment to make, for every test that wants one."""

import pytest

from minigpt.text import Tokenizer, default_corpus


@pytest.fixture(scope="session")
def bpe_tokenizer():
    return Tokenizer.train(default_corpus(), 1024, special_tokens=["<|endoftext|>", "<mask>", "<pad>"])
