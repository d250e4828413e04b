"""What single assignments promise: that what they hand out, or judge by, is what minigpt and others compute."""

import importlib.util
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minigpt.course import grade, release
from minigpt.course.assignment import Assignment
from minigpt.ops import numpy_ops
from minigpt.text import patterns

ASSIGNMENTS = Path(__file__).parent.parent / "tutorials" / "assignments"
A4, A5 = ASSIGNMENTS / "a4_train", ASSIGNMENTS / "a5_text"


def loaded(path, monkeypatch, name="loaded"):
    monkeypatch.syspath_prepend(str(path.parent))         # where pytest would find its neighbours
    monkeypatch.delitem(sys.modules, "test_public", raising=False)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_operations_given_to_a4_are_those_of_minigpt(monkeypatch):
    ops, rng = loaded(A4 / "given" / "ops.py", monkeypatch), np.random.default_rng(1)
    tokens, targets = rng.integers(0, 9, (2, 2, 5))
    targets[1, 2] = -100
    wte, wpe, x, dy = rng.normal(0.3, 1, (9, 6)), rng.normal(size=(7, 6)), *rng.normal(0.3, 1, (2, 2, 5, 6))
    weight, bias, matrix = *rng.normal(0.3, 1, (2, 6)), rng.normal(size=(6, 6))
    q, k, v, dout = rng.normal(0.3, 1, (4, 2, 3, 5, 4))
    mean, rstd = numpy_ops.layernorm_forward(x, weight, bias)[1:]
    logits = rng.normal(0.3, 1, (2, 5, 9))
    out, lse = numpy_ops.attention_forward(q, k, v)
    of_loss = numpy_ops.cross_entropy_forward(logits, targets)[1]
    calls = dict(embedding_forward=(tokens, wte, wpe), embedding_backward=(dy, tokens, wte, wpe),
                 layernorm_forward=(x, weight, bias), layernorm_backward=(dy, x, weight, mean, rstd),
                 linear_forward=(x, matrix, bias), linear_backward=(dy, x, matrix), gelu_forward=(x,),
                 gelu_backward=(dy, x), attention_forward=(q, k, v), attention_backward=(dout, q, k, v, out, lse),
                 cross_entropy_forward=(logits, targets), cross_entropy_backward=(0.2, logits, targets, of_loss))
    assert set(calls) == {name for name in dir(ops) if name.endswith(("_forward", "_backward"))}
    for name, arguments in calls.items():
        got, expected = getattr(ops, name)(*arguments), getattr(numpy_ops, name)(*arguments)
        for a, b in zip(np.atleast_1d(got) if isinstance(got, np.ndarray) else got,
                        np.atleast_1d(expected) if isinstance(expected, np.ndarray) else expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnknownMarkWarning")
@pytest.mark.parametrize("ours, theirs", [("GPT2", "gpt2"), ("GPT4", "cl100k_base")])
def test_a5_cuts_texts_as_gpt_does(ours, theirs, monkeypatch):
    """With `regex` as judge; signs such as ½, which it says are cut otherwise, are not among the bits."""
    pytest.importorskip("regex")
    hidden = loaded(A5 / "tests" / "test_hidden.py", monkeypatch)
    theirs = patterns.compile_pattern(patterns.ENCODINGS[theirs].pattern)
    for seed in range(2000):
        chosen = random.Random(seed)
        text = "".join(chosen.choice(hidden.BITS) for _ in range(chosen.randrange(1, 12)))
        assert getattr(hidden, ours).findall(text) == patterns.split(theirs, text)


SHORT = """
import sys
from given import ablations, corpus
text, validation = corpus.load()
corpus.load = lambda: (text, validation[:100])
ablations.SETTINGS.update(steps=6, warmup=2, decay_steps=6, evaluate_every=3)
before = ablations.run("baseline")
for arm in ablations.ARMS:
    changed = ablations.run(arm)
    assert changed["loss"] != before["loss"] and changed["validation"] != before["validation"], arm
assert ablations.run("baseline") == before, "an arm has left something behind"
ablations.main()
written = ablations.RESULTS.read_text()
sys.argv[1:] = ["baseline", "--seed", "2"]
ablations.main()
assert ablations.RESULTS.read_text() == written, "what is graded is of another seed"
"""


def test_the_ablations_of_a4(tmp_path):
    """Every arm changes what is trained, and nothing for those after it; a student's command writes its two files."""
    shutil.copytree(A4, tmp_path / "a4")
    (tmp_path / "a4" / "student" / "results.json").unlink()
    done = subprocess.run([sys.executable, "-c", SHORT, "no_positions", "no_warmup"], cwd=tmp_path / "a4",
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| no_positions | " in done.stdout and "0 s left" in done.stdout
    first, second = (line for line in done.stdout.splitlines() if line.startswith("| baseline"))
    assert first != second, "another seed changes nothing"
    results = json.loads((tmp_path / "a4" / "student" / "results.json").read_text())
    assert list(results) == ["baseline", "no_positions", "no_warmup"] and len(results["baseline"]["loss"]) == 6
    assert (tmp_path / "a4" / "student" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_given_is_not_taken_from_a_submission(tmp_path):
    """Somebody's own adapters.py, and with it their way to count what the model was given, changes nothing."""
    submission = release.release(A5, tmp_path)
    for name in ("given/tiny.py", "adapters.py"):
        (submission / name).write_text("raise RuntimeError('mine')\n")
    tests, problem = grade.run_tests(Assignment.load(A5), submission, task="1.1")
    assert not problem and {t["status"] for t in tests} == {"todo"}, tests


def test_points_given_by_hand_have_a_place(tmp_path, monkeypatch):
    """A column to fill in, and beside the reports what is to be read. (The tests themselves are run elsewhere.)"""
    monkeypatch.setattr(grade, "run_tests", lambda *_: ([], ""))
    (tmp_path / "submissions" / "ada" / "student").mkdir(parents=True)
    (tmp_path / "submissions" / "ada" / "student" / "writeup.md").write_text("I measured")
    row, = grade.grade_folder(Assignment.load(A4), tmp_path / "submissions", tmp_path / "grades.csv", "none", "")
    assert row["max"] == 80 and row["by hand, of 20"] == ""
    assert (tmp_path / "grades" / "ada" / "writeup.md").read_text() == "I measured"
    assert "20  more are given by hand" in (tmp_path / "grades" / "ada.md").read_text()
    row, = grade.grade_folder(Assignment.load(A5), tmp_path / "submissions", tmp_path / "others.csv", "none", "")
    assert row["max"] == 100 and not any("by hand" in name for name in row)
