"""Knowledge: names are found and hidden whole, facts are told, and the cloze probe asks for them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from test_objectives import assert_is_binomial

from minigpt.config import ModelConfig
from minigpt.evaluate import Cloze, probe
from minigpt.model import GPT
from minigpt.text import CharTokenizer, DataCollatorForKnowledge, Gazetteer, Tokenizer, default_corpus
from minigpt.text.knowledge import read_names, read_triples, verbalise
from minigpt.text.world import RELATIONS, World


@pytest.fixture(scope="module")
def world():
    return World(people=16, cities=8, countries=6)


@pytest.fixture(scope="module")
def tokenizer(world):
    return Tokenizer.train(world.text(8), 700, special_tokens=["<mask>"])


def found(names, tokenizer, text):
    ids = np.array(tokenizer.encode(text))
    return [tokenizer.decode(ids[a:b]).strip() for a, b in Gazetteer(names, tokenizer).find(ids)]


# ---------------------------------------------------------------------------------------------------------------
# the gazetteer


def test_the_longest_name_is_found(bpe_tokenizer):
    names = ["New York", "New York City", "York", "City Hall", "Ann"]
    text = "New York City Hall is in New York, not in York; Anna and Ann's Annex, Yorkshire."
    assert found(names, bpe_tokenizer, text) == ["New York City", "New York", "York", "Ann"]


def test_names_are_found_character_by_character():
    text = "Ann met Anna in York."
    assert found(["Ann", "York", "Zürich"], CharTokenizer.train(text), text) == ["Ann", "York"]


def test_the_search_is_the_slow_and_obvious_one(bpe_tokenizer):
    """Against every place and every name compared one by one."""
    text = default_corpus()[:20_000]
    words = sorted({word for word in text.split() if word.isalpha()})
    rng = np.random.default_rng(0)
    pairs = [" ".join(pair) for pair in zip(text.split(), text.split()[1:], strict=False) if "".join(pair).isalpha()]
    names = [*rng.choice(words, 40), *rng.choice(pairs, 40)]
    ids, gazetteer = np.array(bpe_tokenizer.encode(text)), Gazetteer(names, bpe_tokenizer)
    spelled = {tuple(bpe_tokenizer.encode(space + name)) for name in names for space in ("", " ")}
    spelled = {name for name in spelled if name[:1] != (bpe_tokenizer.encode(" ")[0],)}           # no part of the name
    inside = gazetteer.words.continues(ids).tolist() + [False]
    expected, start = [], 0
    while start < len(ids):
        ends = [start + len(name) for name in spelled if tuple(ids[start:start + len(name)]) == name
                and not inside[start] and not inside[start + len(name)]]
        expected += [(start, max(ends))] if ends else []
        start = max(ends, default=start + 1)
    assert len(expected) > 300 and gazetteer.find(ids) == expected


def test_names_from_files(tmp_path, bpe_tokenizer):
    (tmp_path / "names.txt").write_text("Ann\n\nNew York \n", encoding="utf-8")
    assert len(Gazetteer.from_file(tmp_path / "names.txt", bpe_tokenizer)) == 2
    (tmp_path / "index.noun").write_text("  1 This software\n  2 and database\nabacus n 2 3 @ ~ + 2 0 02666196 09\n"
                                         "abstract_entity n 1 2 @ ~ 1 0 00002137\n", encoding="utf-8")
    assert read_names(tmp_path / "index.noun") == ["abstract entity"]
    (tmp_path / "triples.tsv").write_text("Ann\tborn_in\tYork\n\nBob\tlikes\tAnn\n \n", encoding="utf-8-sig")
    triples = read_triples(tmp_path / "triples.tsv")
    assert verbalise(triples, {"likes": ["{subject} likes {object}!", "It is {object} that {subject} likes."]}) == [
        "Ann born in York.", "Bob likes Ann!", "It is Ann that Bob likes."]


@pytest.mark.parametrize("read, content, words", [
    (read_names, None, "there is no such file"), (read_names, b" \n", "holds no names"),
    (read_names, b"caf\xe9", "not UTF-8 text"),
    (read_triples, b"a\tb\tc\na b c\n", "line 2 is 'a b c', must be subject"),
    (read_triples, b"", "is empty"), (read_triples, b"\n", "is empty"),
])
def test_bad_files_of_knowledge(tmp_path, read, content, words):
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"names.txt: {words}"):
        read(path)
    with pytest.raises(ValueError, match="is not a plain file"):
        read(tmp_path)


# ---------------------------------------------------------------------------------------------------------------
# the collator


def test_names_are_hidden_whole_within_the_budget(world, tokenizer):
    ids = np.array(tokenizer.encode(world.text(8)))
    gazetteer = Gazetteer(world.names(), tokenizer)
    blocks = [ids[i:i + 64] for i in range(0, len(ids) - 64, 64)]
    collator = DataCollatorForKnowledge(tokenizer, gazetteer, entity_share=0.3, seed=0)
    batch = collator(blocks)
    draws, hidden, names, whole = [], 0, 0, 0
    for seen, labels, block in zip(batch["input_ids"], batch["labels"], blocks, strict=True):
        chosen = labels != -100
        assert (labels[chosen] == block[chosen]).all() and (seen[~chosen] == block[~chosen]).all()
        for start, end in gazetteer.find(block):
            assert chosen[start:end].all() or not chosen[start:end].any()
            if chosen[start] and end - start > 1:
                masks = np.count_nonzero(seen[start:end] == tokenizer.mask_token_id)
                draws.append(masks == end - start)
                whole += masks not in (0, end - start)                      # a random token is seldom the mask
            hidden, names = hidden + chosen[start], names + 1
    total = np.count_nonzero(batch["labels"] != -100)
    assert_is_binomial(total, ids.size, 0.15, "tokens hidden")
    assert_is_binomial(hidden, names, 0.3, "names hidden")
    assert_is_binomial(sum(draws), len(draws), 0.8, "names masked as one")
    assert whole <= 0.01 * len(draws)


@pytest.mark.parametrize("T", [16, 32, 128])
def test_a_long_name_is_hidden_as_often_as_a_short_one(world, T):
    """In short blocks too, whose budget is smaller than the name. The mean of all tokens hidden stays."""
    tokenizer = Tokenizer.train(world.text(8), 520, special_tokens=["<mask>"])
    ids, gazetteer = np.array(tokenizer.encode(world.text(40))), Gazetteer(world.names(), tokenizer)
    collator = DataCollatorForKnowledge(tokenizer, gazetteer, entity_share=0.1, seed=0)
    hidden, tokens, blocks = {}, [], np.resize(ids, (len(ids) // T, T))
    for i, block in enumerate(blocks):
        unit = collator.choose(block, np.random.default_rng([i, T]))
        tokens.append(np.count_nonzero(unit >= 0))
        for start, end in gazetteer.find(block):
            hidden.setdefault(min(end - start, 8), []).append(unit[start] >= 0)
    assert set(hidden) >= {3, 4, 5, 6, 7, 8} and min(map(len, hidden.values())) > 100
    for length, drawn in hidden.items():
        assert_is_binomial(sum(drawn), len(drawn), 0.1, f"names of {length} tokens hidden")
    assert abs(np.mean(tokens) - 0.15 * T) < 4.5 * np.std(tokens) / np.sqrt(len(tokens))


def test_a_block_of_names_alone_keeps_the_share(tokenizer):
    """More of them would be hidden otherwise than mlm_probability."""
    block = np.array(tokenizer.encode(" Ann" * 40))
    collator = DataCollatorForKnowledge(tokenizer, Gazetteer(["Ann"], tokenizer), entity_share=0.9, seed=0)
    labels, starts = collator([block] * 300)["labels"], [start for start, _ in collator.gazetteer.find(block)]
    assert len(starts) == 40
    named = sum(end - start for start, end in collator.gazetteer.find(block))
    share = 0.15 * len(block) / named                                       # of the names: they are all there is to it
    assert_is_binomial(np.count_nonzero(labels[:, starts] != -100), labels.shape[0] * 40, share, "names hidden")


def test_sentences_of_triples_take_their_share_of_the_rows(world, tokenizer):
    gazetteer, sentences = Gazetteer(world.names(), tokenizer), verbalise(world.triples)
    filler = np.array(tokenizer.encode(world.filler(1)[0]))
    blocks = [np.resize(filler, 40)] * 400
    collator = DataCollatorForKnowledge(tokenizer, gazetteer, triples=sentences, triple_share=0.25, seed=0)
    batch = collator(blocks)
    told = [np.where(labels == -100, seen, labels) for seen, labels in zip(*map(batch.get, ("input_ids", "labels")),
                                                                          strict=True)]
    others = [tokenizer.decode(row) for row, block in zip(told, blocks, strict=True) if (row != block).any()]
    assert batch["input_ids"].shape == (400, 40)
    assert_is_binomial(len(others), 400, 0.25, "rows of triples")
    for text in others:
        assert all(line in sentences for line in text.split("\n")[:-1])


def test_a_causal_model_is_told_triples_too(world, tokenizer):
    sentences = verbalise(world.triples)
    collator = DataCollatorForKnowledge(tokenizer, Gazetteer(world.names(), tokenizer), triples=sentences,
                                        triple_share=1.0, mlm=False, seed=0)
    batch = collator([[1] * 60])
    assert (batch["labels"] == batch["input_ids"]).all()
    assert all(line in sentences for line in tokenizer.decode(batch["input_ids"][0]).split("\n")[:-1])


def test_bad_arguments_of_the_knowledge_collator(world, tokenizer):
    gazetteer = Gazetteer(world.names(), tokenizer)
    with pytest.raises(TypeError, match="gazetteer is .*, must be a Gazetteer"):
        DataCollatorForKnowledge(tokenizer, ["Ann"])
    for options, words in ((dict(whole_word_mask=True), "whole_word_mask is True"),
                           (dict(entity_share=2), "entity_share is 2"), (dict(triple_share=-1), "triple_share is -1")):
        with pytest.raises(ValueError, match=f"DataCollatorForKnowledge: {words}"):
            DataCollatorForKnowledge(tokenizer, gazetteer, **options)
    with pytest.raises(TypeError, match="triples is 'Ann is.', must be a list of sentences"):
        DataCollatorForKnowledge(tokenizer, gazetteer, triples="Ann is.")
    with pytest.raises(TypeError, match="names is 'ROMEO', must be a list of names"):
        Gazetteer("ROMEO", tokenizer)
    for name in ("", " ", None):
        with pytest.raises(ValueError, match=f"a name is {name!r}, must be text"):
            Gazetteer([name], tokenizer)
    with pytest.raises(ValueError, match="there is no name that the tokenizer can write"):
        Gazetteer(["Ann"], CharTokenizer("xyz"))


# ---------------------------------------------------------------------------------------------------------------
# the world


def test_the_world_is_a_function_of_its_seed():
    assert World(seed=1).text(3) == World(seed=1).text(3) != World(seed=2).text(3)
    assert World(seed=1).text(3, seed=1) != World(seed=1).text(3)
    world = World()
    names = world.names()
    assert len(set(names)) == len(names)
    assert len({triple[:2] for triple in world.triples}) == len(world.triples)       # one answer to each question


def test_the_text_tells_every_fact_as_often_as_said_and_never_in_a_held_out_template(world):
    lines = world.text(5).splitlines()
    facts = [verbalise([triple], {triple.relation: RELATIONS[triple.relation].told}) for triple in world.triples]
    assert all(sum(map(lines.count, sentences)) == 5 for sentences in facts)
    assert len(lines) == 2 * 5 * len(world.triples)
    asked = {sentence.replace("{object}", name) for sentence, _, names, _ in world.questions() for name in names}
    assert not asked & {*lines, *verbalise(world.triples)} and len(asked) > 1000


def test_a_held_out_template_asks_in_words_of_the_text(world):
    """Else nobody could understand the question."""
    words = set("".join(c if c.isalpha() else " " for c in world.text(4).lower()).split())
    for relation in RELATIONS.values():
        assert not set(relation.told) & set(relation.asked)
        for template in relation.asked:
            text = template.replace("{subject}", "").replace("{object}", "")
            assert set(text.lower().replace(".", "").replace(",", "").split()) <= words, template


# ---------------------------------------------------------------------------------------------------------------
# the probe


class Told:
    """A model that is certain of one text, whatever is masked of it, and of a text of another length knows nothing."""

    def __init__(self, text, tokenizer, causal):
        self.ids, self.config = tokenizer.encode(text), ModelConfig(vocab_size=len(tokenizer), causal=causal)

    def forward(self, tokens):
        logits = np.zeros((*tokens.shape, self.config.vocab_size), np.float32)
        ids = self.ids[1:] if self.config.causal else self.ids
        if len(ids) == tokens.shape[1]:
            logits[:, np.arange(len(ids)), ids] = 20
        return logits


@pytest.mark.parametrize("causal", [False, True])
def test_the_probe_finds_what_a_model_knows(tokenizer, causal):
    names = ["Bella", "Bellamorte City", "Zanzibar", "the Grand Duchy of Kostunz"]
    for answer in names:
        model = Told(f"The capital is {answer}.", tokenizer, causal)
        result = probe(model, tokenizer, [Cloze("The capital is {object}.", answer, names)])
        assert result["precision_at_1"] == result["mrr"] == result["vocabulary_precision_at_1"] == 1, answer
        other = names[names.index(answer) - 1]
        assert probe(model, tokenizer, [Cloze("The capital is {object}.", other, names)])["precision_at_1"] == 0


@pytest.mark.parametrize("causal", [False, True])
def test_a_name_is_scored_by_its_log_probability(tokenizer, causal):
    """Against the definition, token by token: the probabilities of all names of one length add up to at most 1."""
    config = ModelConfig(vocab_size=len(tokenizer), block_size=32, n_layer=2, n_head=2, n_embd=16, causal=causal)
    model = GPT(config, "numpy", seed=5)
    for param in model.params.values():
        param *= 4
    before, after = tokenizer.encode("The capital is"), tokenizer.encode(", they say.")
    names = ["Bella", "Bellamorte City", "Zanzibar"]

    def score(name):
        ids, total = tokenizer.encode(" " + name), 0.0
        predicted = len(ids) + (len(after) if causal else 0)
        for k in range(predicted):
            if causal:
                text = (before + ids + after)[:len(before) + k]
                row = model.forward([text])[0, -1]
            else:
                text = before + ids[:k] + [tokenizer.mask_token_id] * (len(ids) - k) + after
                row = model.forward([text])[0, len(before) + k]
            p = np.exp(row.astype(np.float64) - row.max())
            total += math.log(p[(ids + after)[k]] / p.sum())
        return total

    order = sorted(names, key=score, reverse=True)
    for rank, answer in enumerate(order, 1):
        result = probe(model, tokenizer, [Cloze("The capital is {object}, they say.", answer, names)])
        assert result["mrr"] == pytest.approx(1 / rank)


def test_an_untrained_model_is_at_chance(world, tokenizer):
    config = ModelConfig(vocab_size=len(tokenizer), block_size=64, n_layer=1, n_head=2, n_embd=16, causal=False)
    questions = [Cloze(*question) for question in world.questions()]
    result = probe(GPT(config, "numpy"), tokenizer, questions)
    assert result["questions"] == len(questions) == 2 * len(world.triples)
    assert result["precision_at_1"] < 0.25 and 0.05 < result["chance"] < 0.25


def test_names_of_one_length_are_compared_by_themselves(tokenizer):
    """A model that knows nothing finds the one short name, by its length; not so among names of one length."""
    class Even(Told):
        def forward(self, tokens):
            return 0 * super().forward(tokens)

    names = ["Niban", "Ada", "Paul", "Bella", "baker", "lute"]
    lengths = [len(tokenizer.encode(" " + name)) for name in names]
    assert lengths == [1, 2, 2, 3, 3, 4]
    result = probe(Even("x", tokenizer, False), tokenizer, [Cloze("It is {object}.", name, names) for name in names])
    assert result["precision_at_1"] == 1 / 6
    assert result["same_length"] == {"precision_at_1": 0, "chance": 1 / 2, "questions": 4}


def test_equal_scores_are_no_knowledge(tokenizer):
    class Even(Told):
        def forward(self, tokens):
            return 0 * super().forward(tokens)

    names = ["Bella", "Zanzi", "Kostu"]
    lengths = {len(tokenizer.encode(" " + name)) for name in names}
    result = probe(Even("x", tokenizer, False), tokenizer, [Cloze("It is {object}.", name, names) for name in names])
    assert result["precision_at_1"] == 0 if len(lengths) == 1 else result["precision_at_1"] <= 1 / 3


@pytest.mark.parametrize("question, words", [
    (Cloze("Where?", "Ann", ["Ann"]), "must hold {object} once"),
    (Cloze("{object}!", "Ann", ["Bob"]), "must be one of the candidates"),
])
def test_bad_questions(tokenizer, question, words):
    model = Told("x", tokenizer, False)
    with pytest.raises(ValueError, match=words):
        probe(model, tokenizer, [question])
    with pytest.raises(ValueError, match="there are no questions"):
        probe(model, tokenizer, [])
    model.config = replace(model.config, causal=True)
    with pytest.raises(ValueError, match="must begin with text if causal"):
        probe(model, tokenizer, [Cloze("{object}!", "Ann", ["Ann"])])
    model.config = replace(model.config, causal=False)
    with pytest.raises(ValueError, match="the tokenizer has no mask token"):
        probe(model, CharTokenizer("Ann!"[::2]), [Cloze("{object}!", "Ann", ["Ann"])])
