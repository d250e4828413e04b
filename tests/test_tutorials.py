"""The tutorials: each runs as plain Python, its exercises can be done, its checks notice mistakes, and its notebook is
of its source."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from minigpt.ops import available

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tutorials"
SECONDS = 60                              # on 2 cores


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build, lesson = load("build"), load("lesson")
each = pytest.mark.parametrize("path", build.SOURCES, ids=lambda path: path.stem)


@each
def test_it_runs_and_its_exercises_can_be_done(path):
    mistakes = ROOT / "tests" / "mistakes" / f"{path.stem}.toml"
    environment = dict(os.environ, MPLBACKEND="Agg", PYTHONPATH=str(ROOT),
                       OMP_WAIT_POLICY="passive", OPENBLAS_THREAD_TIMEOUT="4")        # who waits sleeps, off the CPU
    run = subprocess.run([sys.executable, ROOT / "tests" / "rehearse.py", path, mistakes], env=environment, text=True,
                         capture_output=True, timeout=300, stdin=subprocess.DEVNULL, cwd=FOLDER)
    assert run.returncode == 0, run.stderr
    took = json.loads(run.stdout.splitlines()[-1])                # a busy machine takes longer, but not more of its CPU
    assert min(took["seconds"], took["cpu"]) <= SECONDS, took


@each
def test_the_notebook_is_that_of_the_source(path):
    made = path.with_suffix(".ipynb")
    assert made.exists() and not build.stale(path), f"{made.name} is stale: make notebooks"
    notebook = nbformat.read(made, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert build.MEASURED.search(notebook.cells[0].source)
    assert made.stat().st_size < 1.5e6


@each
def test_it_has_what_every_tutorial_has(path):
    cells = build.cells(path)
    prose = "\n".join(text for kind, text in cells if kind == "markdown")
    for words in ("You will be able to", "**Needs", "**Predict", "## Summary", "## Papers",
                  "<summary>Hint</summary>", "<summary>Solution</summary>"):
        assert words in prose, f"{path.name} has no {words!r}"
    for kind, text in cells:
        lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        assert kind != "code" or len(lines) <= 15, f"{path.name}: a cell of {len(lines)} lines: {lines[0]}"
    code = "\n".join(text for kind, text in cells if kind == "code")
    assert "plt.show()" in code and "source(" in code
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        assert re.match(r"https?://", link) or (FOLDER / link).exists(), f"{path.name}: a link leads to no file: {link}"


def test_the_check_of_an_exercise():
    import numpy as np

    def double(x):
        return 2 * x

    def changes(x):
        x *= 2
        return x

    x = np.array([1.0, 2.0])
    cases = [((x,), 2 * x, "twice"), ((3,), 6, "")]
    assert lesson.verdict(double, cases) == "right: double, 2 cases"
    assert lesson.verdict(lambda x: None, cases).startswith("not written yet")
    assert lesson.verdict(lambda x: 2 * x if np.ndim(x) else None, cases).endswith("(3) returns nothing")
    said = lesson.verdict(lambda x: 2 * x + np.array([0, 0.1]), cases)
    assert said.startswith("wrong: ") and "is 4.1 at [1], expected 4" in said
    assert "shape" in lesson.verdict(lambda x: x.sum(), cases) and "twice" in lesson.verdict(lambda x: x.sum(), cases)
    assert "changed its argument" in lesson.verdict(changes, cases)
    assert "raised ZeroDivisionError" in lesson.verdict(lambda x: 1 / 0, cases)
    assert "nan" in lesson.verdict(lambda x: x * np.nan, cases)
    assert lesson.difference(float("nan"), 1.0) and lesson.difference(True, 1) and lesson.difference(2, 2.0) is None
    assert lesson.difference(-np.inf, -np.inf) is None and lesson.difference((1, 2), (1, 3)).startswith("result 1")
    assert lesson.difference([1, np.int32(2)], (1, 2)) is None and "a tuple of 2" in lesson.difference(1.0, (1, 2))
    assert lesson.difference([1, 2], [1, 2]) is None and lesson.difference(None, 1.0)


def test_the_check_of_an_exercise_in_cpp(capsys):
    import numpy as np

    total = """extern "C" double total(const float* x, int n) {
      double sum = 0;
      for (int i = 0; i < n; i++) sum += x[i];
      return sum;
    }"""
    for text, says in ((total, "right: total, 1 case"), (total.replace("sum += x[i];", "..."), "not written yet"),
                       (total.replace("i = 0", "i = 1"), "wrong: total(array of shape (8,)) is 7, expected 8\n  why"),
                       (total.replace("sum +=", "s +="), "wrong: the C++ does not compile\nline 3:"),
                       (total.replace('extern "C"', ""), 'wrong: the C++ does not compile\nno function is marked')):
        lesson.check_cpp(text, lambda library, x: library.total(x, len(x)),
                         lesson.case(np.ones(8, np.float32), want=8.0, why="why"))
        assert capsys.readouterr().out.startswith(says)
    with pytest.raises(TypeError, match="x holds float64, must hold float32"):
        lesson.cpp(total).total(np.ones(8), 8)


@pytest.mark.skipif(available()["emulated"] is not None, reason=str(available()["emulated"]))
def test_the_check_of_an_exercise_in_cuda(capsys):
    import numpy as np

    double = """
    __global__ void kernel(const float* x, float* y, int n) {
      int i = blockIdx.x * blockDim.x + threadIdx.x;
      if (i < n) y[i] = 2 * x[i];
    }
    extern "C" void doubled(const float* x, float* y, int n) { kernel<<<(n + 31) / 32, 32>>>(x, y, n); }"""
    x = np.arange(40, dtype=np.float32)
    for text, most, says in (
            (double, 10, "right: doubled, 1 case, in two orders of threads"),
            (double.replace("2 *", "..."), 10, "not written yet"),
            (double, 9, "wrong: the numbers are right, but it takes 10 sectors, where 9 are enough"),
            (double.replace("2 *", "3 *"), 10, "wrong: is 117 at [39], expected 78\n  why"),
            (double.replace("i < n", "i <= n"), 10, "wrong: kernel: thread 8 reads x[40] in kernel.cu:3, out of"),
            (double.replace("y[i]", "z[i]"), 10, "wrong: the CUDA does not compile\n")):
        lesson.check_kernel(text, "doubled", lesson.case(x, np.full(40, np.nan, np.float32), 40, want=2 * x, why="why"),
                            most={"sectors": most})
        assert capsys.readouterr().out.startswith(says)


def test_the_checkpoint_is_as_good_as_its_readme_says():
    import minigpt

    folder = FOLDER / "checkpoint"
    model, tokenizer = minigpt.GPT.from_pretrained(folder), minigpt.Tokenizer.from_pretrained(folder)
    text = (FOLDER / "data" / "shakespeare.txt").read_text(encoding="utf-8")
    _, last_tenth = minigpt.TextDataset.from_tokens(tokenizer.encode(text), model.config.block_size + 1).split(0.1)
    losses = [model.forward(block[None, :-1], block[None, 1:]) for block in last_tenth]
    per_token = sum(map(float, losses)) / len(losses)
    per_character = per_token * len(last_tenth.tokens) / len(tokenizer.decode(last_tenth.tokens))
    said = re.search(r"is ([\d.]+) per token, or ([\d.]+) per character", (folder / "README.md").read_text())
    assert abs(per_token - float(said[1])) < 1e-3 and abs(per_character - float(said[2])) < 1e-3, per_character


def test_the_index_names_every_tutorial_and_leads_to_files():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    notebooks = [path.with_suffix(".ipynb").name for path in build.SOURCES]
    assert [link for link in links if re.match(r"\d", link)] == notebooks
    assert [link for link in links if not (FOLDER / link).exists()] == []
