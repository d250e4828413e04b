"""minigpt bench: it times what it says, and the tables in the checkout say what was measured."""

import importlib.util
import json
import time
from functools import partial

import numpy as np
import pytest

from minigpt import bench
from minigpt.bench import parallel, tables, timing
from minigpt.cli import main
from minigpt.ops import available, numpy_ops
from minigpt.text import default_corpus

needs_cpp = pytest.mark.skipif(available()["cpp"] is not None, reason="the C++ kernels are not built")
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")

LIMITS = {name: 1.0 for name in ("fma_1_thread", "fma", "read", "triad", "triad_streaming", "l3")}


def test_tables_say_what_was_measured():
    assert list(tables.stale()) == [], "run: minigpt bench tables"


def test_every_rung_has_a_measured_line():
    kernels = {(path.parent.name, direction, rung) for path, _, direction, rung in tables.rung_files()}
    assert {"attention", "layernorm", "linear"} <= {folder for folder, *_ in kernels}


# ---------------------------------------------------------------------------------------------------------------
# timing


def test_compare_orders_by_speed():
    summaries = timing.compare({"slow": partial(time.sleep, 0.008), "fast": partial(time.sleep, 0.002)}, seconds=0.1)
    assert 0.008 <= summaries["slow"]["median"] < 0.05
    assert 0.002 <= summaries["fast"]["median"] < summaries["slow"]["median"]
    for summary in summaries.values():
        assert summary["q1"] <= summary["median"] <= summary["q3"]


def test_dirty_blocks_are_dropped(monkeypatch):
    """Blocks in which the machine was busy with something else do not count, unless all were."""
    monkeypatch.setattr(timing, "BLOCK", 0.005)
    monkeypatch.setattr(timing, "SETTLE", 0)
    readings = []  # of the CPU seconds used by the machine, before and after each block

    def busy_in(blocks):
        def reading():
            readings.append(len([b for b in blocks if 2 * b + 1 <= len(readings)]))
            return readings[-1]
        return reading

    monkeypatch.setattr(timing, "_machine_cpu_seconds", busy_in({1, 3}))
    summary = timing.compare({"it": partial(time.sleep, 0.001)}, seconds=0.2)["it"]
    assert summary["clean_blocks"] == len(readings) // 2 - 2 and not summary["noisy"]

    readings.clear()
    monkeypatch.setattr(timing, "_machine_cpu_seconds", busy_in(range(1000)))
    assert timing.compare({"it": partial(time.sleep, 0.001)}, seconds=0.05)["it"]["noisy"]


# ---------------------------------------------------------------------------------------------------------------
# everything, at a tiny size


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "some.txt"
    text.write_text(default_corpus()[:10_000], encoding="utf-8")
    return bench.measure(bench.SECTIONS, 1, data=str(text), tiny=True, settings=("default",))


@needs_cpp
def test_everything_is_measured(tiny):
    ladders = {(row["ladder"], row["rung"]) for row in tiny["sections"]["ops"]["ladders"]}
    from minigpt.ops import cpp_ops

    assert ladders == {(op, rung) for op, rungs in cpp_ops.kernels.items() for rung in rungs}
    works = [row["work"] for section in tiny["sections"].values() for row in section["rows"]]
    assert len(works) == 12 + 1 + 2 + 1
    for section in tiny["sections"].values():
        assert all(value > 0 for value in section["limits"].values())
        for row in section["rows"]:
            assert all(summary["median"] > 0 for summary in row["default"].values())
    text = tables.terminal(tiny)
    assert all(work in text for work in works)


@needs_cpp
@needs_torch
def test_the_peer_is_measured_beside_ours(tiny):
    for section in ("ops", "train", "shakespeare"):
        for row in tiny["sections"][section]["rows"]:
            assert {"ours", "torch"} <= row["default"].keys(), row["work"]


@needs_cpp
def test_kept_results_and_what_is_made_of_them(tiny, tmp_path, monkeypatch):
    """A result kept is found again; README and headers follow it, and are stale when they do not."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(tables, "REPOSITORY", tmp_path)
    folder = tmp_path / "csrc" / "cpp" / "layernorm"
    folder.mkdir(parents=True)
    rung = next(row["rung"] for row in tiny["sections"]["ops"]["ladders"] if row["ladder"] == "layernorm_forward")
    header = folder / f"1_{rung}.cpp"
    header.write_text("// What it computes.\n// measured: (none yet)\n#include <x>\n")
    readme = tmp_path / "README.md"
    readme.write_text(f"# x\n{tables.README_BEGIN}\nold\n{tables.README_END}\nrest\n")

    tables.keep(tiny)
    full = tmp_path / "results" / "cpu.md"
    assert set(tables.stale()) == {header, readme, full}
    assert set(tables.write()) == {header, readme, full} and tables.stale() == {}
    assert "| layernorm forward (8, 24) |" in full.read_text() and "| gelu forward (8, 24) |" in readme.read_text()
    assert "linear" not in readme.read_text() and readme.read_text().endswith("rest\n")
    lines = header.read_text().splitlines()
    assert lines[0] == "// What it computes." and lines[-1] == "#include <x>"
    assert lines[1].startswith("// measured: ") and lines[1].endswith("layernorm forward (8, 24)")

    header.write_text(header.read_text().replace("GB/s", "TB/s"))
    assert set(tables.stale()) == {header}


@needs_cpp
def test_picture(tiny, tmp_path):
    pytest.importorskip("matplotlib")
    from minigpt.bench import picture

    assert picture.ladders(tiny, tmp_path / "ladders.png")
    assert (tmp_path / "ladders.png").read_bytes().startswith(b"\x89PNG")


def row(ours, **peers):
    summary = {name: {"median": s, "q1": s, "q3": s, "noisy": False} for name, s in peers.items()}
    return {"ours": {"median": ours, "q1": ours, "q3": ours, "noisy": False}, **summary}


def test_best_is_never_slower_than_default():
    default, best = row(1.0, torch=3.0, compiled=2.5), row(1.0, torch=4.0)
    [(name, default, best)] = tables.peers({"work": "w", "peer": "p", "flops": 1, "default": default, "best": best})
    assert (default[1], best[1]) == (3.0, 2.5) and name == "p, best: compiled"


def test_ratios_are_taken_in_one_process():
    default, best = row(1.0, torch=4.0), row(0.5, torch=1.0)
    [(_, default, best)] = tables.peers({"work": "w", "peer": "p", "flops": 1, "default": default, "best": best})
    assert (default[1], best[1]) == (4.0, 2.0)


@needs_torch
def test_torch_twin_computes_our_loss():
    import torch

    from minigpt.bench.nanogpt import NanoGPT
    from minigpt.config import ModelConfig
    from minigpt.model import GPT

    config = ModelConfig.preset("demo", n_layer=2, n_embd=32, n_head=2, block_size=16, vocab_size=50)
    model = GPT(config, numpy_ops)
    tokens, targets = np.random.default_rng(0).integers(0, 50, (2, 3, 16))
    twin = NanoGPT(config, model.params)
    loss = twin(torch.from_numpy(tokens), torch.from_numpy(targets))
    loss.backward()
    assert loss.item() == pytest.approx(model.forward(tokens, targets), rel=1e-6)
    model.backward()
    np.testing.assert_allclose(twin.wte.weight.grad.numpy(), model.grads["wte"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(twin.h[1].qkv.bias.grad.numpy(), model.grads["h.1.attn.qkv.bias"], rtol=1e-3, atol=1e-6)


def test_knowledge_arms_differ_in_the_places_alone():
    """In every block the control hides spans of the lengths of the names, elsewhere; the second arm as many tokens of
    names, one by one, and the others where name masking hides them."""
    from minigpt.bench import knowledge
    from minigpt.text import TextDataset, Tokenizer
    from minigpt.text.world import World

    world = World(**knowledge.WORLD)
    tokenizer = Tokenizer.train(world.text(4), knowledge.VOCABULARY, special_tokens=["<mask>"])
    control, tokens, names, _ = knowledge.collators(tokenizer, world, 0).values()
    dataset, moved, torn = TextDataset.from_tokens(tokenizer.encode(world.text(4)), knowledge.BLOCK), 0, 0
    for i in range(100):
        random, single, whole = (collator.choose(dataset[i], np.random.default_rng(i))
                                 for collator in (control, tokens, names))
        spans = [np.unique(unit[unit >= 0], return_counts=True) for unit in (random, whole)]
        assert sorted(spans[0][1]) == sorted(spans[1][1])
        for start, length in zip(*spans[0], strict=True):
            assert (random[start:start + length] == start).all()                                    # in one piece
        named = knowledge.in_names(names.gazetteer, dataset[i])
        assert (single[~named] == whole[~named]).all() and ((single == np.arange(len(single))) | (single < 0)).all()
        assert np.count_nonzero(single >= 0) == np.count_nonzero(whole >= 0)
        moved += (random != whole).any()
        torn += any(0 < np.count_nonzero(single[start:end] >= 0) < end - start
                    for start, end in names.gazetteer.find(dataset[i]))
    assert moved > 90 and torn > 15


def test_knowledge_is_measured_kept_and_its_table_follows(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    from minigpt.bench import knowledge

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "write", lambda: [])
    monkeypatch.setattr(knowledge, "PICTURE", tmp_path / "knowledge.png")
    assert knowledge.run(True, True, str(tmp_path / "copy.json"), lambda line: None) == 0
    shown = capsys.readouterr().out
    assert knowledge.kept_table(tmp_path).startswith(shown.strip())
    assert (tmp_path / "copy.json").read_bytes() == (tmp_path / "knowledge.json").read_bytes()
    assert (tmp_path / "knowledge.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "copy.json").read_text())
    assert set(result["arms"]) == {"random spans", "name tokens", "whole names", "names + triples"}
    assert all(len(values) == 1 for figures in result["arms"].values() for values in figures.values())


def test_the_chance_of_knowledge_is_that_of_all_worlds(monkeypatch):
    """Each seed has a world, questions and a best constant answer of its own; the table shows their mean."""
    from minigpt.bench import knowledge

    found = {figure: 0.5 for figure in knowledge.FIGURES} | {"questions": 4, "facts": 2, "tokens": 1, "parameters": 1}
    monkeypatch.setattr(knowledge, "_in_a_process", lambda job: found | {
        "chance": 0.1 * job[0], "same_length_chance": 0.2 * job[0], "same_length_questions": 3})
    result = knowledge.measure(lambda line: None)
    assert result["chance"] == pytest.approx([0.1 * seed for seed in range(knowledge.SEEDS)])
    shown = knowledge.table(result)
    assert "answers get 10% right" in shown and "3 questions, 20%" in shown


def test_statements_of_a_fact_are_counted():
    """With triples a fact is stated more often: the figure is that of a count in the rows that the arms train on."""
    from minigpt.bench import knowledge
    from minigpt.text import TextDataset, Tokenizer
    from minigpt.text.world import World

    world = World(**knowledge.WORLD, seed=0)
    text = world.text(20, filler=knowledge.FILLER)
    tokenizer = Tokenizer.train(text, knowledge.VOCABULARY, special_tokens=["<mask>"])
    dataset = TextDataset.from_tokens(tokenizer.encode(text), 512)                   # long, so that few lines are cut
    pairs = [(fact.subject, fact.object) for fact in world.triples]
    for arm, collator in knowledge.collators(tokenizer, world, 0).items():
        batch = collator([dataset[i % len(dataset)] for i in range(6 * len(dataset))])
        told = np.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
        lines = [line for row in told for line in tokenizer.decode(row).splitlines()]
        counted = sum(any(a in line and b in line for a, b in pairs) for line in lines) / len(pairs)
        assert counted == pytest.approx(knowledge.statements(collator, dataset, 20, told.size), rel=0.06), arm


def test_no_question_is_in_what_the_knowledge_arms_train_on(monkeypatch):
    """Of every world measured: what training and asking are really given is caught on its way, and compared."""
    from minigpt.bench import knowledge
    from minigpt.text.world import World

    class Caught(Exception):
        pass

    def train(tokenizer, collator, dataset, steps, seed):
        rows = [dataset[i] for i in range(len(dataset))] + collator.sentences
        caught.extend(tokenizer.decode(np.concatenate(rows)).splitlines())

    def ask(model, tokenizer, questions):
        asked.update(question.sentence.strip() for question in questions)

    def loss(model, collator, dataset):
        rows = [dataset[i] for i in range(len(dataset))]
        ordinary.update(collator.tokenizer.decode(np.concatenate(rows)).splitlines()[:-1])
        raise Caught

    for function in (train, loss):
        monkeypatch.setattr(knowledge, function.__name__, function)
    monkeypatch.setattr(knowledge, "probe", ask)
    for seed in range(knowledge.SEEDS):
        caught, asked, ordinary = [], set(), set()
        with pytest.raises(Caught):
            knowledge.measure_arm(seed, "names + triples")
        world, trained = World(**knowledge.WORLD, seed=seed), set(caught)
        names = world.names()
        assert len(caught) > 1000 and len(asked) == 2 * len(world.triples)
        assert not trained & {sentence.replace("{object}", name) for sentence in asked for name in names}
        assert len(ordinary) > 300 and not trained & ordinary


def test_the_kept_knowledge_result_is_of_these_settings():
    """And its arms differ as they are said to: the same tokens seen, names hidden more often in all but the control."""
    from minigpt.bench import knowledge

    result = json.loads((tables.RESULTS / "knowledge.json").read_text())
    assert result["settings"] == knowledge.settings() and list(result["arms"]) == list(knowledge.ARMS)
    assert result["seeds"] >= 3 and result["tokens"] > 1_000_000
    named, statements = ([np.mean(figures[key]) for figures in result["arms"].values()]
                         for key in ("named", "statements"))
    assert named[0] < 0.8 * named[1] and named[1] == pytest.approx(named[2])
    assert statements[0] == statements[1] == statements[2] < statements[3]
    for name, figures in result["arms"].items():
        assert np.mean(figures["precision_at_1"]) > np.mean(result["chance"]), name


@needs_cpp
def test_command_writes_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *_, **__: {
        "threads": 1, "sections": {"ops": {"date": "2026-01-02", "limits": LIMITS, "rows": [], "ladders": []}},
        "machine": {"cpu": "x", "family": None, "model": None, "isa": "base", "versions": {}}})
    assert main(["bench", "ops", "--json", str(tmp_path / "f.json")]) == 0
    assert json.loads((tmp_path / "f.json").read_text())["sections"]["ops"]["date"] == "2026-01-02"
    assert "2026-01-02" in capsys.readouterr().out


def test_what_is_kept_takes_the_place_of_the_same_sections_only(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def result(**days):
        sections = {name: {"date": day, "limits": LIMITS, "rows": [], "ladders": []} for name, day in days.items()}
        return {"threads": 2, "sections": sections, "machine": {"cpu": "x", "family": None, "model": None, "isa": "y"}}

    tables.keep(result(ops="2026-01-02", train="2026-01-02"))
    tables.keep(result(train="2026-03-04"))
    assert [path.name for path in tmp_path.iterdir()] == ["2026-03-04_x_y_2-threads.json"]
    assert tables.newest() == result(ops="2026-01-02", train="2026-03-04")
    assert tables.dates(tables.newest()) == "2026-01-02 and 2026-03-04"


@needs_cpp
def test_a_worker_that_fails_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("MINIGPT_ISA", "z80")                                # our process has loaded its kernels already
    assert main(["bench", "ops", "--tiny"]) == 2
    assert capsys.readouterr().err == "minigpt: bench: the process measuring ops failed (exit code 1)\n"


@pytest.mark.parametrize("arguments, words", [
    (["nonsense"], "nonsense"), (["ops", "--threads", "0"], "--threads is 0"), (["decode", "--only", "GPT"], "--only"),
    (["ops", "--tiny", "--keep"], "--keep"), (["shakespeare"], "--data FILE"),
    (["shakespeare", "--data", "nowhere.txt"], "'nowhere.txt' does not exist")])
def test_bad_arguments(arguments, words, capsys):
    assert main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_refused_before_it_is_measured(tmp_path, capsys):
    for place in (tmp_path / "no" / "x.json", tmp_path):
        assert main(["bench", "ops", "--tiny", "--json", str(place)]) == 2
        assert "bench: --json is" in capsys.readouterr().err


def test_the_twin_is_measured_and_its_table_made(capsys):
    pytest.importorskip("torch")
    from minigpt.bench import twin

    assert twin.run(1, False, True, None, lambda line: None) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [line.split("|")[2].strip() for line in lines] == ["fp32", "bf16"] and all("x |" in line for line in lines)


@needs_torch
def test_bench_parallel_is_tried_in_small_and_keeps_nothing_unasked(tmp_path, monkeypatch, capsys):
    """One real run, of one process; the others are told the same."""
    (tmp_path / "text.txt").write_text("7 bottles on the wall\n" * 100, encoding="utf-8")
    losses, speed = parallel.train(tmp_path / "out", tmp_path / "text.txt", None, tiny=True)
    assert len(losses) == parallel.TINY_STEPS and losses[-1] < losses[0] and speed > 0
    asked, drawn = [], []
    monkeypatch.setattr(parallel, "train", lambda *args, **options: asked.append(options["tiny"]) or (losses, speed))
    monkeypatch.setattr(parallel, "draw", lambda curves, path: drawn.append(path))
    command = ["bench", "parallel", "--data", str(tmp_path / "text.txt")]
    assert main([*command, "--tiny"]) == 0 and asked == [True] * len(parallel.RUNS) and not drawn
    assert main([*command, "--keep"]) == 0 and not asked[-1] and drawn == [parallel.PICTURE]
    assert main([*command, "--json", str(tmp_path / "x.json")]) == 2
    assert "--json is " in capsys.readouterr().err
