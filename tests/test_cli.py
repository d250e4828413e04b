"""The command line as people meet it: what it does, and that bad input ends in one line and exit code 2."""

import io
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training import weights

from minigpt import cli
from minigpt.commands.demo import steps_in
from minigpt.commands.generate import write_text
from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.text import Tokenizer
from minigpt.train import checkpoint

ROOT = Path(__file__).parent.parent
TEXT = "".join(f"{n} bottles stand on the wall; if one should fall, there are {n - 1}.\n" for n in range(300, 0, -1))
SMALL = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --ops numpy --warmup-steps 2".split()


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a small trained model."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    out = folder / "model"
    assert cli.main(["train", "--data", str(folder / "text.txt"), "--out", str(out), "--max-steps", "30", *SMALL]) == 0
    return out


def train(data, out, *options):
    return ["train", "--data", str(data), "--out", str(out), "--max-steps", "4", *SMALL, *options]


def refused(capsys, argv):
    """Runs a command that must fail with exit code 2 and one line on stderr; returns the line."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in argv]) == 2
    shown, error = capsys.readouterr()
    assert not shown or argv[0] != "generate", "the prompt must not stand before a complaint"
    assert error.startswith("minigpt: ") and error.count("\n") == 1, error
    return error


def start(*argv, **options):
    """The command in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "minigpt", *map(str, argv)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)


# ---------------------------------------------------------------------------------------------------------------
# what the commands do


def test_importing_is_quick_and_needs_numpy_alone():
    code = """if True:
        import sys, time
        class Only:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "minigpt"}:
                    raise ImportError(f"minigpt must not need {name}")
        sys.meta_path.insert(0, Only())
        start = time.perf_counter()
        import minigpt
        print(time.perf_counter() - start)
        for name in minigpt.__all__:
            getattr(minigpt, name)
        """
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 0.5, seconds


def test_every_command_helps(capsys):
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0 and f"minigpt {command}" in capsys.readouterr().out


def test_train_writes_a_model_that_generate_continues(trained, capsys):
    assert {"model.safetensors", "config.json", "tokenizer.json", "metrics.jsonl", "checkpoint-30"} <= {
        path.name for path in trained.iterdir()}
    texts = []
    for seed in (1, 1, 2):
        argv = ["generate", "--model", str(trained), "--prompt", "7 bottles", "--max-new-tokens", "40", "--top-k", "9",
                "--top-p", "0.95", "--temperature", "1.2", "--seed", str(seed)]
        assert cli.main(argv) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("7 bottles") and len(texts[0]) == 9 + 40 + 1


def test_a_long_prompt_is_cut_and_that_is_said(trained, capsys):
    assert cli.main(["generate", "--model", str(trained), "--prompt", TEXT[:60], "--max-new-tokens", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(TEXT[:60]) and err.count("\n") == 1 and err.startswith("minigpt: generate: the prompt has 60")


def test_the_same_command_trains_the_same_model(text_file, tmp_path, trained):
    for out in ("a", "b"):
        assert cli.main(train(text_file, tmp_path / out, "--seed", "5")) == 0
    assert cli.main(train(text_file, tmp_path / "c", "--seed", "6")) == 0
    a, b, c = (weights(GPT.from_pretrained(tmp_path / out)) for out in "abc")
    assert a == b != c


def test_a_tokenizer_may_be_trained_or_taken_from_a_folder(text_file, tmp_path):
    pytest.importorskip("regex")
    assert cli.main(train(text_file, tmp_path / "bpe", "--tokenizer", "bpe", "--vocab-size", "300")) == 0
    assert Tokenizer.from_pretrained(tmp_path / "bpe").vocab_size == 300
    assert cli.main(train(text_file, tmp_path / "again", "--tokenizer", str(tmp_path / "bpe"))) == 0
    a, b = (weights(GPT.from_pretrained(tmp_path / out)) for out in ("bpe", "again"))
    assert a == b


def test_the_objective_is_chosen(text_file, tmp_path, capsys):
    """Masked, and knowledge with a list of names and triples: trained, stopped, resumed; the model is bidirectional."""
    (tmp_path / "names.txt").write_text("bottles\nwall\nten\nZürich\n", encoding="utf-8")
    (tmp_path / "triples.tsv").write_text("bottles\tstand on\twall\n", encoding="utf-8")
    knowledge = ["--entities", tmp_path / "names.txt", "--triples", tmp_path / "triples.tsv"]
    for objective, options in (("masked", []), ("knowledge", knowledge)):
        out = tmp_path / objective
        argv = [*map(str, train(text_file, out, "--objective", objective, "--save-steps", "2", *options))]
        assert cli.main(argv) == 0
        told = "4 names, 2 of them in the text, 1 left out" in capsys.readouterr().out
        assert told == (objective == "knowledge")
        whole = weights(GPT.from_pretrained(out))
        shutil.rmtree(out / "checkpoint-4")
        assert cli.main([*argv, "--resume"]) == 0
        assert weights(GPT.from_pretrained(out)) == whole
        model, tokenizer = GPT.from_pretrained(out), Tokenizer.from_pretrained(out)
        assert not model.config.causal and model.config.vocab_size == len(tokenizer)
        assert tokenizer.mask_token == "<mask>"
        assert "generate" not in capsys.readouterr().out
        assert "must be causal to continue a text" in refused(capsys, ["generate", "--model", out, "--prompt", "7"])
    for names, message in (("ten\n", "none of its names is in"), ("Zürich\n", "there is no name that the tokenizer")):
        (tmp_path / "none.txt").write_text(names, encoding="utf-8")
        argv = train(text_file, tmp_path / "out", "--objective", "knowledge", "--entities", tmp_path / "none.txt")
        assert f"none.txt: {message}" in refused(capsys, argv).replace("Gazetteer: ", "")
    other = train(text_file, tmp_path / "masked", "--resume", "--objective", "knowledge", *knowledge)
    assert ": --objective was masked" in refused(capsys, other)
    back = refused(capsys, train(text_file, tmp_path / "masked", "--resume"))
    assert re.search(": --objective was masked .*, is now causal; give what it was", back), back
    batch = ["--per-device-train-batch-size", "9"]
    more = train(text_file, tmp_path / "masked", "--resume", "--objective", "masked", *batch)
    assert re.search(r"\(--per-device-train-batch-size x --gradient-accumulation-steps x 1", refused(capsys, more))


class Parrot:
    """A model that says what it was given."""

    def __init__(self, ids):
        self.ids = ids

    def generate(self, tokens, on_token, **options):
        for token in self.ids:
            on_token(token)


def test_bytes_of_an_unfinished_character_are_held_back():
    tokenizer = Tokenizer.train("", 257)                                    # each byte is a token
    file, shown = io.StringIO(), []
    file.flush = lambda: shown.append(file.getvalue())
    ids = tokenizer.encode("zé🙂!🙂")[:-2]
    write_text(Parrot(ids), tokenizer, ">", file)
    assert shown == [">z", ">z", ">zé", ">zé", ">zé", ">zé", ">zé🙂", ">zé🙂!", ">zé🙂!", ">zé🙂!"]
    assert file.getvalue() == ">zé🙂!\ufffd\n"                              # what never came to an end


def test_demo_in_small(tmp_path, capsys, text_file):
    pytest.importorskip("regex")
    out = tmp_path / "demo"
    argv = ["demo", "--data", str(text_file), "--out", str(out), "--max-steps", "3"]
    assert cli.main(argv) == 0
    shown = capsys.readouterr().out
    sample = (out / "sample.txt").read_text(encoding="utf-8")
    assert sample.startswith("The") and sample in shown and f"How its loss fell is in {out}" in shown
    assert GPT.from_pretrained(out).config.n_layer == 4 and list(checkpoint.listed(out))[-1] == 3
    assert cli.main([*argv, "--resume"]) == 0                               # there is nothing left to do
    assert "holds a run already" in refused(capsys, argv)
    (out / "checkpoint-3" / "trainer_state.json").write_text("{}")
    assert "trainer_state.json: must be" in refused(capsys, [*argv[:5], "--resume"])


def test_a_second_demo_takes_the_place_of_the_first(tmp_path, text_file, monkeypatch):
    pytest.importorskip("regex")
    monkeypatch.chdir(tmp_path)
    for steps in (2, 1):
        assert cli.main(["demo", "--data", str(text_file), "--max-steps", str(steps)]) == 0
        assert list(checkpoint.listed("out/demo"))[-1] == steps


def test_demo_counts_the_steps_that_fit():
    class Slow:
        config = ModelConfig.preset("demo")

        def forward(self, tokens, targets):
            time.sleep(0.02)

        def backward(self):
            pass

    assert 100 < steps_in(0.1, Slow()) < 0.1 * 60 / 0.02
    for minutes in (-1, 0, float("inf"), float("nan"), 1e308):
        with pytest.raises(ValueError, match=f"--minutes is {re.escape(str(minutes))}, must be more than 0"):
            steps_in(minutes, Slow())


# ---------------------------------------------------------------------------------------------------------------
# stops


def test_killed_again_and_again_the_model_is_the_same(text_file, tmp_path):
    argv = train(text_file, tmp_path / "killed", "--max-steps", "60", "--save-steps", "4", "--logging-steps", "1",
                 "--eval-steps", "30", "--resume")
    random.seed(8)
    kills = 0
    log = tmp_path / "killed" / "metrics.jsonl"
    while kills < 4:
        process, lines = start(*argv), log.read_bytes().count(b"\n") if log.exists() else 0
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") <= lines + 3):
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        kills += 1
    assert kills >= 2
    assert cli.main(argv) == 0
    assert cli.main([*argv[:4], str(tmp_path / "whole"), *argv[5:]]) == 0
    for name in ("model.safetensors", "checkpoint-60/model.safetensors", "checkpoint-60/optimizer.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_ctrl_c_says_how_to_go_on(text_file, tmp_path):
    process = start(*train(text_file, tmp_path / "out", "--max-steps", "100000", "--logging-steps", "1"))
    while not (tmp_path / "out" / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith("minigpt: stopped after step ") and last.endswith(" --resume") and "go on with: " in last
    assert len(checkpoint.listed(tmp_path / "out")) == 1


def test_the_reader_of_the_output_may_leave(trained):
    process = start("generate", "--model", trained, "--prompt", "9", "--max-new-tokens", "3000", "--ops", "numpy")
    process.stdout.read(20)
    process.stdout.close()
    assert process.wait(60) == 0 and process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
@pytest.mark.parametrize("where, code, error", [
    (">&-", 0, ""),
    (">&- 2>&-", 0, ""),
    pytest.param(">/dev/full", 2, "minigpt: No space left on device\n",
                 marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")),
])
def test_output_that_nobody_reads(trained, where, code, error):
    command = shlex.join([sys.executable, "-m", "minigpt", "generate", "--model", str(trained), "--prompt", "9"])
    done = subprocess.run(f"{command} {where}", shell=True, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", error)


def test_a_terminal_that_cannot_show_a_character(tmp_path):
    model = tmp_path / "model"
    tokenizer = Tokenizer.train("", 257)
    GPT(ModelConfig.preset("char", vocab_size=257), "numpy").save_pretrained(model, tokenizer)
    process = start("generate", "--model", model, "--prompt", "é", "--max-new-tokens", "0",
                    env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert process.communicate(timeout=60) == ("?\n", "") and process.returncode == 0


def test_an_unknown_instruction_set_is_no_reason_to_be_slow(trained):
    process = start("generate", "--model", trained, "--prompt", "9", env=os.environ | {"MINIGPT_ISA": "foo"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == "" and err.count("\n") == 1 and err.startswith("minigpt: ")


def test_ctrl_c_while_importing():
    code = """if True:
        import runpy, sys
        class CtrlC:
            def find_spec(self, name, path=None, target=None):
                if name == "minigpt.cli":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, CtrlC())
        runpy.run_module("minigpt", run_name="__main__")
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "")


# ---------------------------------------------------------------------------------------------------------------
# bad input


def test_bad_commands(capsys):
    assert "required: command" in refused(capsys, [])
    assert "invalid choice: 'trian'" in refused(capsys, ["trian"])
    assert "required: --data, --out" in refused(capsys, ["train"])
    assert "unrecognized arguments: --evaluation-strategy" in refused(
        capsys, ["train", "--data", "x", "--out", "y", "--evaluation-strategy", "no"])


@pytest.mark.parametrize("content, message", [
    (None, "text.txt' does not exist, must be a UTF-8 text"),
    (b"", "text.txt is empty"),
    (b"caf\xe9 au lait\n" * 100, "text.txt is not UTF-8 text: byte 0xe9"),
    (b"short", "must have at least one block of 17|has 5 tokens, must have 2580 or more"),
])
@pytest.mark.parametrize("command", ["train", "demo"])
def test_bad_texts(tmp_path, capsys, command, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    argv = train(path, tmp_path / "out") if command == "train" else ["demo", "--data", path, "--out", tmp_path / "out"]
    line = refused(capsys, argv)
    assert any(part in line for part in message.split("|")), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options, message", [
    (["--ops", "cuda9"], "no backend named 'cuda9'"),
    (["--preset", "gpt5"], "invalid choice: 'gpt5'"),
    (["--max-steps", "many"], "invalid int value: 'many'"),
    (["--learning-rate", "-1"], "learning_rate is -1.0, must be more than 0"),
    (["--n-head", "3"], "n_embd is 16, must be a multiple of n_head, 3"),
    (["--eval-fraction", "2"], "fraction is 2.0, must be between 0 and 1"),
    (["--tokenizer", "nowhere.json"], "nowhere.json"),
    (["--data", ""], "--data: '' does not exist, must be a UTF-8 text"),
    (["--data", os.devnull], "is not a plain file, must be a UTF-8 text"),
    (["--data", "."], "--data: '.' is not a plain file, must be a UTF-8 text"),
    (["--seed", "-1"], "seed is -1, must be 0 or more"),
    (["--objective", "electra"], "invalid choice: 'electra'"),
    (["--objective", "knowledge"], "--objective knowledge needs the names to hide: --entities FILE"),
    (["--objective", "knowledge", "--entities", "nowhere.txt"], "nowhere.txt: there is no such file"),
    (["--router-bias"], "router_bias is True, must be False without experts (n_expert is 0)"),
    (["--expert-inner", "9"], "--expert-inner is 9, means nothing without experts: --n-expert"),
    (["--muon-learning-rate", "0.1"], "--muon-learning-rate is 0.1, means nothing without --optim muon"),
    (["--entities", "names.txt"], "--entities is for --objective knowledge, the objective is causal"),
    (["--objective", "knowledge", "--entities", __file__, "--triples", __file__], "line 1 is "),
])
def test_bad_training_options(text_file, tmp_path, capsys, options, message):
    assert message in refused(capsys, train(text_file, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_bad_output_folders(text_file, tmp_path, capsys, trained):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("")
    assert "holds other things (diary.txt)" in refused(capsys, train(text_file, tmp_path / "mine"))
    assert "cannot be written" in refused(capsys, train(text_file, text_file / "below"))
    assert "holds a run already; go on with it (--resume)" in refused(capsys, train(text_file, trained))
    assert "holds a run already" in refused(capsys, train(tmp_path / "no text", trained))  # asked first, it costs least
    longer = refused(capsys, train(text_file, trained, "--resume", "--max-steps", "40"))
    assert "--max-steps was 30, is now 40; give what it was, or start a new run in another --out" in longer
    assert cli.main([*map(str, train(text_file, trained, "--resume", "--max-steps", "30"))]) == 0
    told = capsys.readouterr().out
    assert "already at step 30 of 30" in told and f"Going on from {trained / 'checkpoint-30'}.\n" in told
    assert "cannot resume from" in refused(capsys, train(text_file, trained, "--resume", "--learning-rate", "0.1"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_full_disk(text_file, tmp_path):
    """A limit on the size of files stands in for the disk: the weights do not fit, all else does."""
    import resource

    process = start(*train(text_file, tmp_path / "out", "--no-tied", "--n-embd", "256"),
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)))
    _, err = process.communicate(timeout=60)
    last = err.splitlines()[-1]
    assert process.returncode == 2 and "Traceback" not in err
    assert "checkpoint-4 could not be written (File too large); there is no earlier checkpoint" in last
    assert not checkpoint.listed(tmp_path / "out") and not checkpoint.leftovers(tmp_path / "out")


@pytest.mark.parametrize("options, message", [
    (["--temperature", "-1"], "temperature is -1.0, must be 0 or more"),
    (["--top-k", "0"], "top_k is 0, must be an integer of 1 or more"),
    (["--top-p", "1.5"], "top_p is 1.5, must be above 0 and at most 1"),
    (["--max-new-tokens", "-5"], "max_new_tokens is -5, must be an integer of 0 or more"),
    (["--seed", "-1"], "seed is -1, must be None or an integer of 0 or more"),
    (["--prompt", ""], "--prompt is empty"),
    (["--prompt", "7\udcff"], "--prompt: '7\\udcff' is not UTF-8 text"),
    (["--prompt", "7 §"], "character '§' is not among the"),
    (["--model", "nowhere"], "nowhere"),
    (["--ops", "tpu"], "no backend named 'tpu'"),
])
def test_bad_generation_options(trained, capsys, options, message):
    assert message in refused(capsys, ["generate", "--model", trained, "--prompt", "7", *options])


def test_bad_model_folders(trained, tmp_path, capsys):
    def broken(name, content):
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for path in trained.iterdir():
            if path.is_file():
                (folder / path.name).write_bytes(path.read_bytes())
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        return refused(capsys, ["generate", "--model", folder, "--prompt", "7"])

    whole = (trained / "model.safetensors").read_bytes()
    nan = bytearray(whole)
    nan[-4:] = np.float32(np.nan).tobytes()
    for content in (None, b"", whole[:1000], whole[:-4], b"PK\x03\x04" * 100, bytes(nan)):
        assert "model.safetensors" in broken("model.safetensors", content)
    for content in (None, b"", b"[]", b'{"model_type": "bert"}'):
        assert "config.json" in broken("config.json", content)
    for content in (None, b"", b"{}"):
        assert "tokenizer" in broken("tokenizer.json", content)


def test_an_interrupt_and_no_memory_are_one_line(monkeypatch, capsys):
    for error, code, line in ((KeyboardInterrupt(), 130, "minigpt: interrupted\n"),
                              (MemoryError(), 2, "minigpt: out of memory\n"),
                              (OSError("a\nb"), 2, "minigpt: a b\n")):
        def fail(argv, error=error):
            raise error
        monkeypatch.setattr(cli, "_run", fail)
        assert cli.main([]) == code and capsys.readouterr().err == line
