"""Several ranks are one: processes that talk over gloo compute the losses, gradients and weights that one process does,
in every layout, and a job that loses a rank ends as if it had not. What the processes do is in distributed_checks.py.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch.distributed with gloo", allow_module_level=True)

CHECKS = Path(__file__).parent / "distributed_checks.py"
NAMES = re.findall(r"^def (check_\w+_(\d))\(", CHECKS.read_text(), re.MULTILINE)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TEXT = "In the beginning was the word, and the word was with the model, and the model was small.\n" * 200
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKS.parent.parent)}


def start(*command, **more):
    return subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, **more)


def run(*command):
    with start(*command) as process:
        try:
            output, _ = process.communicate(timeout=120)
        finally:
            process.terminate()
    return process.returncode, output


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{check: what went wrong} of all checks, with two processes and with four."""
    folder, found = tmp_path_factory.mktemp("checks"), {}
    (folder / "saved").mkdir()
    for ranks in (4, 2):                                        # two load what four have saved
        code, output = run(*TORCHRUN, "--nproc-per-node", ranks, CHECKS, folder)
        assert code == 0, output
        found |= json.loads((folder / f"results_{ranks}.json").read_text())
    return found


@pytest.mark.parametrize("name", [name for name, _ in NAMES])
def test_ranks(results, name):
    assert results[name] == ""


# ---------------------------------------------------------------------------------------------------------------
# from the command line


def train(folder, *options, steps=40):
    """The arguments of `minigpt train` for a tiny run that saves every fifth step."""
    data = folder.parent / "text.txt"
    data.write_text(TEXT)
    tiny = "--n-layer 1 --n-head 2 --n-embd 16 --block-size 16 --per-device-train-batch-size 4 --warmup-steps 2"
    every = f"--max-steps {steps} --save-steps 5 --logging-steps 1 --eval-steps 20"
    return ["-m", "minigpt", "train", "--data", data, "--out", folder, "--engine", "torch", *tiny.split(),
            *every.split(), *options]


def losses(folder):
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint_and_no_more(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, output = run(sys.executable, *train(whole, "--per-device-train-batch-size", "8"))
    assert code == 0, output
    job = start(*TORCHRUN, "--nproc-per-node", 2, "--max-restarts", 2, *train(killed, "--parallel", "fsdp"))
    end = time.monotonic() + 60
    while not list(killed.glob("checkpoint-*")):
        assert job.poll() is None and time.monotonic() < end, job.communicate()[0]
        time.sleep(0.01)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    if not children.exists():
        job.kill()
        pytest.skip("needs /proc to find the ranks")
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    assert output.count("tokens to train on") == 2              # it was started twice, and only the first rank talks
    assert losses(killed) == pytest.approx(losses(whole), rel=1e-4)

    transformers = pytest.importorskip("transformers")
    transformers.GPT2LMHeadModel.from_pretrained(killed)


@pytest.mark.parametrize("ranks, options, message", [
    (2, ["--parallel", "tp=2,dp=2"], r"rank \d: parallel is tp=2,dp=2, which takes 4 ranks, but there are 2"),
    (2, [], r"rank \d: Trainer: 2 ranks were started, but parallel is None"),
    (1, ["--parallel", "ddp"], "parallel needs several ranks, and torchrun starts them"),
])
def test_one_line_from_one_rank(tmp_path, ranks, options, message):
    launcher = [*TORCHRUN, "--nproc-per-node", ranks] if ranks > 1 else [sys.executable]
    _, output = run(*launcher, *train(tmp_path / "out", *options))
    lines = [line for line in output.splitlines() if line.startswith("minigpt: ")]
    assert len(lines) == 1 and re.match(f"minigpt: {message}", lines[0]), output
    assert "exitcode  : 2" in output or ranks == 1
    assert '/minigpt/' not in output                            # no traceback of ours


@pytest.mark.parametrize("option, message", [
    ("--parallel ddp --n-embd $((16 + 16 * RANK))", "n_embd is 32 on rank 1, and 16 on rank 0"),
    ("--parallel $([ $RANK = 0 ] && echo fsdp || echo ddp)", "parallel is ddp on rank 1, and fsdp on rank 0"),
    ("--parallel ddp --eval-fraction 0.$((1 + RANK))", "--data is "),
])
def test_a_rank_that_differs_ends_all(tmp_path, option, message):
    """Rank 1 finds that it is another; the first rank, already in the next exchange, says nothing."""
    arguments = " ".join(map(str, train(tmp_path / "out")))
    command = f"exec {sys.executable} {arguments} {option}"
    _, output = run(*TORCHRUN, "--nproc-per-node", 2, "--no-python", "bash", "-c", command)
    lines = [line for line in output.splitlines() if line.startswith("minigpt: ")]
    assert lines == [lines[0]] and f"rank 1: the ranks disagree: {message}" in lines[0]


def test_sigterm_saves_everything(tmp_path):
    folder = tmp_path / "out"
    job = start(*TORCHRUN, "--nproc-per-node", 2, *train(folder, "--parallel", "ddp", steps=5000))
    end = time.monotonic() + 60
    while not list(folder.glob("checkpoint-*")):
        assert job.poll() is None and time.monotonic() < end, job.communicate()[0]
        time.sleep(0.01)
    job.terminate()
    output, _ = job.communicate(timeout=60)
    stopped = re.search(r"minigpt: stopped after step (\d+) of 5000, everything is saved; go on with: torchrun", output)
    assert stopped and (folder / f"checkpoint-{stopped[1]}" / "tokenizer.json").is_file(), output


def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch):
    from minigpt import ModelConfig, TextDataset, Trainer, TrainingArguments
    from minigpt.scale import TorchGPT

    model = TorchGPT(ModelConfig(vocab_size=5, block_size=8, n_layer=1, n_head=1, n_embd=8))
    dataset = TextDataset.from_tokens([1] * 99, 9)
    run = Trainer(model, TrainingArguments(str(tmp_path), max_steps=1), train_dataset=dataset)

    def allocate(micro_batches):
        torch.empty(2**60)                                      # what torch says of this is a RuntimeError

    monkeypatch.setattr(run.engine, "gradients", allocate)
    with pytest.raises(MemoryError, match=r"out of memory in step 1; lower per_device_train_batch_size \(now 8\)"):
        run.train()


def test_a_backend_that_is_missing(monkeypatch):
    from minigpt.ranks import Layout
    from minigpt.scale.parallel import Ranks

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: False)
    for device, name in (("cpu", "gloo"), ("cuda", "nccl")):
        with pytest.raises(ValueError, match=f"parallel needs {name} for ranks on {device}, which this torch"):
            Ranks(Layout.parse("ddp"), device, {})
