"""What test_distributed.py has several processes do: this file is what each of them runs.

    python distributed_checks.py FOLDER     with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them

Every function whose name ends in the number of processes is a check. All run one after the other in one process group;
the first rank writes FOLDER/results.json, {check: what went wrong on any rank, or ""}.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from minigpt import ModelConfig, TrainingArguments
from minigpt.scale import TorchGPT, places
from minigpt.scale.engine import TorchEngine
from minigpt.scale.parallel import ParallelEngine

TINY = dict(vocab_size=11, block_size=9, n_layer=2, n_head=4, n_embd=16, n_inner=24)
GPT2 = ModelConfig(**TINY)
LLAMA = ModelConfig(**TINY, n_kv_head=2, norm="rmsnorm", position="rope", activation="swiglu", bias=False, tied=False)
MOE = ModelConfig(**TINY, norm="rmsnorm", position="rope", activation="swiglu", bias=False, n_expert=4, expert_inner=12,
                  router_bias=True)
ROWS, T, STEPS = 8, 9, 3  # a step's texts, their length, the steps compared


def engine(config, parallel=None, dtype=torch.float64, **arguments):
    args = TrainingArguments(learning_rate=1e-2, weight_decay=0.1, parallel=parallel, **arguments)
    model = TorchGPT(config, seed=3).to(dtype)
    made = (ParallelEngine if parallel else TorchEngine)(model, args)
    made.begin()
    return made


def texts(config, step):
    """tokens, targets (ROWS, T) of a step. The ranks' shares count very different numbers of targets; one has none."""
    rng = np.random.default_rng(step)
    tokens, targets = rng.integers(0, config.vocab_size, (2, ROWS, T))
    targets[0, 2:] = targets[ROWS // 2:ROWS // 2 + 2] = -100
    return tokens, targets


def micro_batches(config, step, accumulated, ranks):
    """This rank's, as the Trainer deals them out."""
    tokens, targets = texts(config, step)
    size = ROWS // accumulated // ranks.data_ranks
    return [(tokens[i:i + size], targets[i:i + size])
            for i in range(ranks.data_rank * size, ROWS, ranks.data_ranks * size)]


def train(made, accumulated=1, steps=STEPS, max_norm=0.05):
    """-> for every step its loss and norm; the gradients of the first; the weights after all. Both as pieces."""
    config, figures = made.model.config, []
    for step in range(steps):
        loss, norm = made.gradients(micro_batches(config, step, accumulated, made.ranks))
        if step == 0:
            grads = {name: param.grad.clone() for name, param in made.model.named_parameters()}
            grads = places.pieces(grads, config, made._place)
        made.step(step + 1, 1e-2, min(1, max_norm / norm))
        figures.append((loss, norm))
    return figures, grads, made._pieces("")


def difference(config, parallel, accumulated=1, **arguments):
    """The largest difference between a run in this layout and one of one process, relative to the largest number of
    its kind."""
    whole_figures, whole_grads, whole_weights = train(engine(config, **arguments))
    figures, grads, weights = train(engine(config, parallel, **arguments), accumulated)
    worst = float(np.abs(np.array(figures) / np.array(whole_figures) - 1).max())
    for mine, whole in ((grads, whole_grads), (weights, whole_weights)):
        assert mine
        largest = max(float(piece.data.abs().max()) for piece in whole.values())
        worst = max(worst, *(float((piece.data - whole[name].data[piece.where]).abs().max()) / largest
                             for name, piece in mine.items()))
    return worst


def same(*arguments, allowed=1e-12, **more):
    found = difference(*arguments, **more)
    assert found < allowed, f"{arguments}: differs by {found:.3g}"


def check_ddp_2():
    same(GPT2, "ddp")
    same(LLAMA, "ddp", accumulated=2)


def check_fsdp_2():
    same(GPT2, "fsdp")
    same(LLAMA, "fsdp", accumulated=2)


def check_float32_and_bfloat16_2():
    for parallel in ("ddp", "fsdp", "tp=2"):
        same(GPT2, parallel, accumulated=2, dtype=torch.float32, allowed=1e-4)
        same(GPT2, parallel, dtype=torch.float32, bf16=True, allowed=5e-2)
        same(GPT2, parallel, dtype=torch.float32, gradient_checkpointing=True, allowed=1e-4)


def check_tp_2():
    same(GPT2, "tp=2")
    same(LLAMA, "tp=2", accumulated=2)


def check_ep_2():
    same(MOE, "ep=2")
    same(MOE, "ep=2", accumulated=2)
    same(MOE, "ddp", accumulated=2)
    same(MOE, "fsdp", accumulated=2)


def check_ep_by_dp_4():
    same(MOE, "ep=2,dp=2", accumulated=2)
    same(MOE, "ep=4")


def check_fsdp_4():
    same(GPT2, "fsdp")
    same(LLAMA, "fsdp", accumulated=2)


def check_tp_by_dp_4():
    same(GPT2, "tp=2,dp=2")
    same(LLAMA, "tp=2,dp=2", accumulated=2)


def check_tp_4():
    same(GPT2, "tp=4")


def main(folder):
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    results = {}
    wanted = sys.argv[2:]
    for name, check in list(globals().items()):
        if name.startswith("check_") and name.endswith(f"_{world}") and (not wanted or name in wanted):
            problem = ""
            try:
                check()
            except Exception:
                problem = f"rank {rank}: {traceback.format_exc()}"
            problems = [None] * world
            dist.all_gather_object(problems, problem)
            results[name] = "\n".join(filter(None, problems))
            if rank == 0:
                print(name, results[name] or "ok", flush=True)
    if rank == 0:
        (Path(folder) / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
