"""Objectives: what the collators hide, and the Trainer with them. The outside judge is transformers' own collator."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
from training import at_step, tokens, weights

import minigpt
from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.text import CharTokenizer, DataCollatorForLanguageModeling, TextDataset, Tokenizer, default_corpus
from minigpt.text.tokenizer import AddedToken
from minigpt.text.words import Words
from minigpt.train import Trainer, TrainingArguments

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


@pytest.mark.parametrize("engine", ["ops", "torch"])
def test_the_listing_runs(folder, tmp_path, monkeypatch, engine):
    """For GPT and, under the name GPT, for its torch twin."""
    if engine == "torch":
        pytest.importorskip("torch")
    GPT = minigpt.GPT if engine == "ops" else importlib.import_module("minigpt.scale").TorchGPT
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
    assert type(trainer.model) is GPT and not GPT.from_pretrained(tmp_path).config.causal
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


def test_a_tokenizer_without_a_mask_token_says_what_to_do_and_that_works(tmp_path):
    tokenizer = CharTokenizer.train("some text")
    with pytest.raises(ValueError, match="no mask token, which masked language modelling needs; add one .*mlm=False"):
        DataCollatorForLanguageModeling(tokenizer)
    config = ModelConfig(vocab_size=len(tokenizer), tied=False, **SMALL)
    model = GPT(config, "numpy")
    before = {name: param.copy() for name, param in model.params.items()}
    assert tokenizer.add_special_tokens({"mask_token": "<mask>"}) == 1
    assert tokenizer.add_special_tokens({"mask_token": "<mask>"}) == 0
    arguments = TrainingArguments(str(tmp_path / "run"), max_steps=1)
    data = TextDataset.from_tokens(tokenizer.encode("some text" * 20), 9)
    with pytest.raises(ValueError, match=r"8 tokens, the model rows for 7; call model.resize_token_embeddings\(8\)"):
        Trainer(model, arguments, DataCollatorForLanguageModeling(tokenizer), data)
    assert model.resize_token_embeddings(len(tokenizer)) is model.params["wte"]
    for name, param in model.params.items():
        np.testing.assert_array_equal(param[:len(before[name])], before[name])
        if len(param) > len(before[name]):
            np.testing.assert_allclose(param[-1], before[name].mean(axis=0), atol=1e-7)
    with pytest.warns(UserWarning, match="both ways"):
        Trainer(model, arguments, DataCollatorForLanguageModeling(tokenizer), data).train()
    model.save_pretrained(tmp_path / "model", tokenizer)
    again = Tokenizer.from_pretrained(tmp_path / "model")
    assert (again.mask_token, again.mask_token_id, len(again)) == ("<mask>", 7, 8)
    assert GPT.from_pretrained(tmp_path / "model").config == model.config
    assert model.config.vocab_size == 8 and not model.config.causal


@pytest.mark.parametrize("role, text", [("bos_token", "<s>"), ("mask_token", "s"), ("mask_token", "")])
def test_bad_special_tokens(role, text):
    with pytest.raises(ValueError, match=role):
        CharTokenizer.train("some text").add_special_tokens({role: text})


def test_an_added_token_is_transformers_own(tmp_path, bpe_tokenizer):
    transformers = pytest.importorskip("transformers")
    bpe_tokenizer.save_pretrained(tmp_path)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"mask_token": "[hidden]"})
    tokenizer.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.mask_token, theirs.mask_token_id) == ("[hidden]", tokenizer.mask_token_id)
    assert len(theirs) == len(tokenizer) == len(bpe_tokenizer) + 1


# ---------------------------------------------------------------------------------------------------------------
# what is masked: transformers' statistics


def rates(seen, labels, ids, mask_id):
    """Counts: tokens chosen, and of these masked, replaced by another, kept."""
    chosen = labels != -100
    assert (labels[chosen] == ids[chosen]).all() and (seen[~chosen] == ids[~chosen]).all()
    masked, kept = chosen & (seen == mask_id), chosen & (seen == ids)
    return np.array([n.sum() for n in (chosen, masked, chosen & ~masked & ~kept, kept)])


def assert_is_binomial(count, n, p, what):
    """Within 4.5 deviations: one in 150,000 fails by chance, and the seed is fixed."""
    assert abs(count - n * p) < 4.5 * np.sqrt(n * p * (1 - p)) + 1, f"{what}: {count} of {n}, expected {p:.3f}"


def judge(folder, tokenizer):
    """transformers' collator for the same tokenizer."""
    transformers = pytest.importorskip("transformers")
    tokenizer.save_pretrained(folder)
    return lambda **options: transformers.DataCollatorForLanguageModeling(
        transformers.AutoTokenizer.from_pretrained(folder), return_tensors="np", **options)


@pytest.mark.parametrize("options", [
    {}, dict(mlm_probability=0.4, mask_replace_prob=0.5, random_replace_prob=0.3),
    dict(mask_replace_prob=1.0, random_replace_prob=0.0)])
def test_the_statistics_are_transformers(tmp_path, bpe_tokenizer, options):
    """Both collators' counts are those of one binomial distribution, and special tokens are never hidden."""
    V, mask_id = len(bpe_tokenizer), bpe_tokenizer.mask_token_id
    ids = np.random.default_rng(0).integers(V, size=(40, 1000))
    special = np.isin(ids, list(bpe_tokenizer.special_tokens.values()))
    ours = DataCollatorForLanguageModeling(bpe_tokenizer, seed=1, **options)
    p, masked, replaced = ours.mlm_probability, ours.mask_replace_prob, ours.random_replace_prob
    for name, collator in (("ours", ours), ("transformers", judge(tmp_path, bpe_tokenizer)(seed=1, **options))):
        batch = collator(list(ids.copy()))
        assert batch["input_ids"].shape == batch["labels"].shape == ids.shape
        assert (batch["labels"][special] == -100).all(), name
        counts = rates(batch["input_ids"], batch["labels"], ids, mask_id)
        assert_is_binomial(counts[0], (~special).sum(), p, f"{name}, chosen")
        assert_is_binomial(counts[1], counts[0], masked + replaced / V, f"{name}, masked")
        assert_is_binomial(counts[2], counts[0], replaced * (1 - 2 / V), f"{name}, replaced")
        assert_is_binomial(counts[3], counts[0], 1 - masked - replaced + replaced / V, f"{name}, kept")


def test_causal_labels_are_transformers(tmp_path, bpe_tokenizer):
    """Padding included, and padded to a multiple."""
    ids = [np.arange(5, 12), np.arange(20, 23), np.array([3])]
    ours = DataCollatorForLanguageModeling(bpe_tokenizer, mlm=False, pad_to_multiple_of=4)(ids)
    theirs = judge(tmp_path, bpe_tokenizer)(mlm=False, pad_to_multiple_of=4)([{"input_ids": row} for row in ids])
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert ours["input_ids"].shape == (3, 8)


def test_items_may_be_lists_arrays_or_dicts_and_tensors_come_out(bpe_tokenizer):
    torch = pytest.importorskip("torch")
    items = [[1, 2, 3, 4], np.arange(4), {"input_ids": [4, 3, 2, 1]}]
    collators = [DataCollatorForLanguageModeling(bpe_tokenizer, mlm_probability=0.5, return_tensors=kind, seed=7)
                 for kind in ("np", "pt")]
    a, b = (collator(items) for collator in collators)
    assert all(isinstance(b[name], torch.Tensor) and (b[name].numpy() == a[name]).all() for name in a)


def test_words_are_whole(bpe_tokenizer):
    text = "Encyclopaedists, don't re-tokenise 1234567 naïve “Übermenschen”"
    ids = np.array(bpe_tokenizer.encode(text))
    words, groups = Words(bpe_tokenizer), []
    for id, goes_on in zip(ids, words.continues(ids), strict=True):
        groups[-1:] = [groups[-1] + [id]] if goes_on else [*groups[-1:], [id]]
    assert [bpe_tokenizer.decode(group).strip() for group in groups if len(group) > 1]
    found = [bpe_tokenizer.decode_bytes(group).decode(errors="replace").strip() for group in groups]
    assert {"Encyclopaedists", "don", "re", "tokenise", "1234567", "naïve", "Übermenschen"} <= set(found), found


def test_whole_words_are_masked_together_and_their_pieces_drawn_apart(bpe_tokenizer):
    """As BERT does: the word is chosen as one, and masked, replaced or kept piece by piece."""
    text = default_corpus()[:60_000]
    ids = np.array(bpe_tokenizer.encode(text))
    collator = DataCollatorForLanguageModeling(bpe_tokenizer, whole_word_mask=True, seed=0)
    batch = collator([ids])
    seen, labels = batch["input_ids"][0], batch["labels"][0]
    word = np.cumsum(~collator.words.continues(ids)) - 1
    chosen = labels != -100
    size, hidden = np.bincount(word), np.bincount(word, weights=chosen)
    assert (size > 1).sum() > 1000 and np.isin(hidden, [0]).any()
    assert ((hidden == 0) | (hidden == size)).all()
    assert_is_binomial((hidden > 0).sum(), len(size), 0.15, "words chosen")
    counts = rates(seen, labels, ids, bpe_tokenizer.mask_token_id)
    assert_is_binomial(counts[1], counts[0], 0.8 + 0.1 / len(bpe_tokenizer), "pieces masked")
    mixed = np.bincount(word, weights=chosen & (seen == bpe_tokenizer.mask_token_id))
    pairs = (hidden == 2)
    assert_is_binomial((mixed[pairs] == 1).sum(), pairs.sum(), 2 * 0.8 * 0.2, "words of two pieces with one masked")


@pytest.mark.parametrize("options, words", [
    (dict(mlm_probability=1.5), "mlm_probability is 1.5, must be between 0 and 1"),
    (dict(mask_replace_prob=0.9, random_replace_prob=0.2), r"mask_replace_prob \+ random_replace_prob is 1.1"),
    (dict(mlm=False, whole_word_mask=True), "whole_word_mask is True, must be False with mlm=False"),
    (dict(pad_to_multiple_of=0), "pad_to_multiple_of is 0, must be"), (dict(return_tensors="tf"), "'tf', must be"),
])
def test_bad_arguments_of_a_collator(bpe_tokenizer, options, words):
    with pytest.raises(ValueError, match=f"DataCollatorForLanguageModeling: .*{words}"):
        DataCollatorForLanguageModeling(bpe_tokenizer, **options)


@pytest.mark.parametrize("options, words", [
    (dict(seed=-1), "seed is -1, must be an integer of 0"), (dict(seed="x"), "seed is 'x', must"),
    (dict(seed=1.5), "seed is 1.5, must"), (dict(mask_replace_prob="x"), "mask_replace_prob is 'x', must be between"),
    (dict(mlm="no"), "mlm is 'no', must be True or False"), (dict(whole_word_mask=1), "whole_word_mask is 1, must be"),
])
def test_arguments_of_another_kind_are_named(bpe_tokenizer, options, words):
    with pytest.raises((ValueError, TypeError), match=f"DataCollatorForLanguageModeling: {words}"):
        DataCollatorForLanguageModeling(bpe_tokenizer, **options)


def test_numpys_numbers_are_as_good_as_pythons(bpe_tokenizer):
    """And give the record of a run what JSON can hold."""
    collator = DataCollatorForLanguageModeling(bpe_tokenizer, mlm_probability=np.float32(0.25), seed=np.int64(3))
    plain = DataCollatorForLanguageModeling(bpe_tokenizer, mlm_probability=0.25, seed=3)
    assert collator.fingerprint() == plain.fingerprint() and collator.mlm_probability == 0.25
    np.testing.assert_array_equal(collator([[1] * 50])["labels"], plain([[1] * 50])["labels"])


@pytest.mark.parametrize("items, words", [
    ([[]], "an item is empty, must hold one id or more"),
    ([[1, 2], [[3]]], r"an item is int64 of shape \(1, 1\), must be integers in one axis"),
    ([[0.5]], "an item is float64"), ([{"ids": [1]}], "an item holds ids, must hold input_ids"),
    ([[99999]], "an item holds the ids 99999 .. 99999, must be in 0 .. 1023"),
])
def test_bad_items(bpe_tokenizer, items, words):
    with pytest.raises(ValueError, match=words):
        DataCollatorForLanguageModeling(bpe_tokenizer)(items)


def test_ragged_items_need_a_pad_token():
    tokenizer = CharTokenizer.train("abc", special_tokens=["<mask>"])
    with pytest.raises(ValueError, match="items of 1 to 2 tokens must be padded, and the tokenizer has no pad token"):
        DataCollatorForLanguageModeling(tokenizer)([[0, 1], [2]])


# ---------------------------------------------------------------------------------------------------------------
# in the Trainer


def digits():
    """A tokenizer for training.tokens(): 20 characters and a mask token."""
    return CharTokenizer("abcdefghijklmnopqrst", {"<mask>": AddedToken(20)})


def masked(folder, collator=None, **arguments):
    train_dataset, eval_dataset = TextDataset.from_tokens(tokens(), 16).split(0.1)
    config = ModelConfig(vocab_size=21, block_size=16, n_layer=2, n_head=2, n_embd=16, causal=False)
    model = GPT(config, "numpy", seed=3)
    defaults = dict(max_steps=12, learning_rate=1e-2, logging_steps=2, eval_strategy="steps", eval_steps=4,
                    save_steps=4, per_device_train_batch_size=4)
    return Trainer(model, TrainingArguments(output_dir=str(folder), **defaults | arguments),
                   collator or DataCollatorForLanguageModeling(digits()), train_dataset, eval_dataset)


def test_a_masked_run_stopped_and_resumed_ends_with_the_same_bits(tmp_path):
    whole, run = masked(tmp_path / "whole"), masked(tmp_path / "stopped")
    whole.train()

    def stop():
        raise RuntimeError("power cut")

    at_step(run, 6, stop)
    with pytest.raises(RuntimeError):
        run.train()
    again = masked(tmp_path / "stopped")
    again.train(resume_from_checkpoint=True)
    assert weights(again.model) == weights(whole.model)
    logs = [[{k: v for k, v in entry.items() if "loss" in k} for entry in run.state.log_history]
            for run in (whole, again)]
    assert logs[0] == logs[1]


def test_masks_belong_to_the_place_in_the_run_not_to_the_batch(tmp_path):
    """Micro-batches of any size see the same masks, and every epoch sees others."""
    def batches(step, **sizes):
        run = masked(tmp_path / "unused", **sizes)
        parts = [np.stack(pair) for pair in run._micro_batches(step)]
        return np.concatenate(parts, axis=1)

    large = batches(3, per_device_train_batch_size=8)
    np.testing.assert_array_equal(large, batches(3, per_device_train_batch_size=2, gradient_accumulation_steps=4))
    run = masked(tmp_path / "unused")
    item, n = run.train_dataset[5], len(run.train_dataset)
    epochs = [run._collate([item], [(42, 1, 7 + n * epoch)])[1].tolist() for epoch in range(8)]
    assert len({str(labels) for labels in epochs}) == 8
    assert run.evaluate()["eval_loss"] == run.evaluate()["eval_loss"]


def test_a_resumed_run_must_mask_as_before(tmp_path):
    masked(tmp_path).train()
    run = masked(tmp_path, DataCollatorForLanguageModeling(digits(), mlm_probability=0.3))
    with pytest.raises(ValueError, match=r"data_collator was masked \(0.15, .*, is now masked \(0.3"):
        run.train(resume_from_checkpoint=True)
    path = tmp_path / "checkpoint-12" / "trainer_state.json"
    saved = json.loads(path.read_text())
    del saved["run"]["data_collator"]
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="trainer_state.json: run has or lacks data_collator; it is damaged"):
        run.train(resume_from_checkpoint=True)


def test_a_masked_model_learns_from_its_context(tmp_path):
    """In blocks of one token each, any token that is not masked tells those that are."""
    run = masked(tmp_path, max_steps=150, save_strategy="no", eval_strategy="no", per_device_train_batch_size=16)
    run.train_dataset = run.eval_dataset = [np.full(16, token) for token in range(20)]
    before = run.evaluate()["eval_loss"]
    run.train()
    assert before > 2.9 and run.evaluate()["eval_loss"] < 0.5


def test_a_bidirectional_model_is_not_trained_to_copy(tmp_path):
    run = masked(tmp_path)
    with pytest.raises(ValueError, match="would see the tokens that it is to predict"):
        Trainer(run.model, run.args, train_dataset=run.train_dataset, eval_dataset=run.eval_dataset)
    with pytest.warns(UserWarning, match=r"attends to the left only \(causal=True\)"):
        Trainer(run.model, run.args, DataCollatorForLanguageModeling(digits(), mlm=False), run.train_dataset,
                run.eval_dataset)
    assert run.model.config.causal
