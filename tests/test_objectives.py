"""Objectives: what the collators hide, and the Trainer with them. The outside judge is transformers' own collator."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from training import at_step, weights

from minigpt import GPT, DataCollatorForLanguageModeling, ModelConfig, TextDataset, Tokenizer, Trainer, TrainingArguments
from minigpt.text import CharTokenizer, default_corpus
from minigpt.text.words import Words

SMALL = dict(block_size=32, n_layer=1, n_head=2, n_embd=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bpe_tokenizer):
    """A folder with train.txt and `model`, as somebody may have them: a causal GPT-2 and its tokenizer."""
    folder = tmp_path_factory.mktemp("listing")
    (folder / "train.txt").write_text(default_corpus()[:30_000], encoding="utf-8")
    config = ModelConfig(vocab_size=len(bpe_tokenizer), **SMALL | {"block_size": 128})
    GPT(config, "numpy").save_pretrained(folder / "model", bpe_tokenizer)
    return folder


# ---------------------------------------------------------------------------------------------------------------
# the listing


def test_the_listing_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    PATH, training_args, eval_dataset = "model", TrainingArguments(str(tmp_path), max_steps=2, logging_steps=1), None

    tokenizer = Tokenizer.from_pretrained(PATH)
    model = GPT.from_pretrained(PATH)
    train_dataset = TextDataset(tokenizer=tokenizer, file_path="train.txt", block_size=128)
    data_collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=True)
    with pytest.warns(UserWarning, match=r"now attends both ways \(causal=False\)"):
        trainer = Trainer(model=model, args=training_args, data_collator=data_collator, train_dataset=train_dataset,
                          eval_dataset=eval_dataset, processing_class=tokenizer)
    trainer.train()

    trainer.save_model()
    assert not GPT.from_pretrained(tmp_path).config.causal
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("config", [ModelConfig(vocab_size=50, **SMALL), ModelConfig(
    vocab_size=50, norm="rmsnorm", position="rope", activation="swiglu", bias=False, tied=False, **SMALL)])
def test_transformers_opens_a_masked_model_and_computes_the_same(tmp_path, config):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("is_causal is of version 5")
    model = GPT(replace(config, causal=False), "numpy", seed=1)
    model.save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path).config == model.config
    ids = np.random.default_rng(0).integers(0, 50, (2, 9))
    for attention in ("eager", "sdpa"):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention).eval()
        with torch.no_grad():
            logits = theirs(torch.from_numpy(ids)).logits.numpy()
        np.testing.assert_allclose(logits, model.forward(ids), atol=1e-5, err_msg=attention)
