"""What test_distributed.py has several processes do: this file is what each of them runs.

    torchrun --nproc-per-node 2 distributed_checks.py FOLDER [check ...]

Every check_* whose name ends in the number of processes runs, one after the other in one process group; the first rank
writes FOLDER/results_2.json, {check: what went wrong on any rank, or ""}.
"""

import faulthandler
import json
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from minigpt import ModelConfig, TrainingArguments
from minigpt.files import SafeTensors, load_pretrained, write_safetensors
from minigpt.scale import TorchGPT, parallel, places, tensor_parallel
from minigpt.scale.checkpoint import RECORD
from minigpt.scale.engine import MOMENTS, TorchEngine

TINY = dict(vocab_size=11, block_size=9, n_layer=2, n_head=4, n_embd=16, n_inner=24)
GPT2 = ModelConfig(**TINY)
LLAMA = ModelConfig(**TINY, n_kv_head=2, norm="rmsnorm", position="rope", activation="swiglu", bias=False, tied=False)
MOE = ModelConfig(**TINY, norm="rmsnorm", position="rope", activation="swiglu", bias=False, n_expert=4, expert_inner=12,
                  router_bias=True)
FOLDER = Path(sys.argv[1]) if __name__ == "__main__" else None
ROWS, T, STEPS = 8, 9, 3  # a step's texts, their length, the steps compared


def engine(config, layout=None, dtype=torch.float64, **arguments):
    args = TrainingArguments(learning_rate=1e-2, weight_decay=0.1, parallel=layout, **arguments)
    model = TorchGPT(config, seed=3).to(dtype)
    made = (parallel.ParallelEngine if layout else TorchEngine)(model, args)
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


def difference(config, layout, accumulated=1, alone=1, **arguments):
    """The largest difference between a run in this layout and one of one process, which accumulates `alone`
    micro-batches, relative to the largest number of its kind."""
    whole_figures, whole_grads, whole_weights = train(engine(config, **arguments), alone)
    figures, grads, weights = train(engine(config, layout, **arguments), accumulated)
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


def check_precisions_2():
    for layout in ("ddp", "fsdp", "tp=2"):
        same(GPT2, layout, accumulated=2, dtype=torch.float32, allowed=1e-4)
        same(GPT2, layout, dtype=torch.float32, bf16=True, allowed=5e-2)
        same(GPT2, layout, dtype=torch.float32, fp16=True, allowed=5e-2)
        same(GPT2, layout, dtype=torch.float32, gradient_checkpointing=True, allowed=1e-4)


def check_tp_2():
    same(GPT2, "tp=2")
    same(LLAMA, "tp=2", accumulated=2)


def check_ep_2():
    same(MOE, "ep=2")
    same(MOE, "ep=2", accumulated=2)
    same(MOE, "ddp", accumulated=2)
    same(MOE, "fsdp", accumulated=2)


def check_router_losses_are_of_a_micro_batch_2():
    """Two ranks are one process with as large micro-batches; the whole batch at once is another balance."""
    config = replace(MOE, router_aux_loss=0.1, router_z_loss=0.01)
    for layout in ("ddp", "fsdp", "ep=2"):
        same(config, layout, alone=2)
        same(config, layout, accumulated=2, alone=4)
    assert difference(config, "ddp") > 1e-4


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


# ---------------------------------------------------------------------------------------------------------------
# a comparison that cannot fail would prove nothing


def wrong(owner, name, mistake, *arguments, **more):
    with mock.patch.object(owner, name, mistake):
        assert difference(*arguments, **more) > 1e-3, f"{name}, done wrong, goes unnoticed"


def check_wrong_reductions_are_noticed_2():
    total = parallel._sum_of_gradients
    wrong(parallel, "_sum_of_gradients", lambda group, bucket: total(group, bucket).then(lambda x: x.value() / 2),
          GPT2, "ddp")
    wrong(parallel.FSDPModule, "set_gradient_divide_factor", lambda self, factor: None, GPT2, "fsdp")
    wrong(parallel.Ranks, "sum", lambda self, *numbers: numbers, GPT2, "ddp")            # counts its own targets
    wrong(tensor_parallel, "all_reduced", lambda x, group: x.clone(), GPT2, "tp=2")
    wrong(tensor_parallel.Copy, "backward", staticmethod(lambda ctx, dx: (dx, None)), GPT2, "tp=2")
    wrong(parallel.ParallelEngine, "_norm", TorchEngine._norm, GPT2, "tp=2")             # of its own part
    wrong(places, "_parts", lambda name, config: {name: config.parameter_shapes()[name][0]}, GPT2, "tp=2")
    wrong(parallel.ParallelEngine, "_exchange", lambda self, now: self.module.no_sync(), GPT2, "ddp")


def check_all_reduces_of_a_layer_2():
    """Two forward and two backward, as Megatron-LM counts them."""
    made = engine(GPT2, "tp=2")
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
        losses = made._losses(*texts(GPT2, 0))
        assert all_reduce.call_count == 2 * GPT2.n_layer
        losses.sum().backward()
        assert all_reduce.call_count == 4 * GPT2.n_layer


# ---------------------------------------------------------------------------------------------------------------
# checkpoints: saved in one layout, loaded in another

SAVED = {1: {"one": None}, 2: {"fsdp_2": "fsdp"}, 4: {"fsdp_4": "fsdp", "tp_by_dp": "tp=2,dp=2", "tp_4": "tp=4"}}


def saved(folder, layout=None):
    """A checkpoint of two steps."""
    made = engine(GPT2, layout)
    train(made, steps=2)
    if made.ranks.rank == 0:
        folder.mkdir()
    made.ranks.wait()
    made.save(folder, None)


def loaded(folder, layout=None):
    """An engine that goes on from there; its weights were others."""
    made = engine(GPT2, layout)
    for param in made.model.parameters():
        param.data.mul_(2)
    made.load(folder, 2)
    return made


def next_loss(made):
    return made.gradients(micro_batches(GPT2, 2, 1, made.ranks))[0]


def loads_all(layouts):
    """Every checkpoint there is, in every layout: the same bits, the same next loss."""
    for folder in sorted(FOLDER.glob("saved/*")):
        whole = loaded(folder)
        weights, loss = whole._pieces("", *MOMENTS), next_loss(whole)
        for layout in layouts:
            made = loaded(folder, layout)
            for name, piece in made._pieces("", *MOMENTS).items():
                assert piece.data.equal(weights[name].data[piece.where]), f"{folder.name} -> {layout}: {name}"
            assert abs(next_loss(made) / loss - 1) < 1e-12, f"{folder.name} -> {layout}"


def check_checkpoints_2():
    saved(FOLDER / "saved/fsdp_2", "fsdp")
    loads_all(["ddp", "fsdp", "tp=2"])


def check_checkpoints_4():
    for name, layout in SAVED[4].items():
        saved(FOLDER / "saved" / name, layout)
    loads_all(["ddp", "fsdp", "tp=4", "tp=2,dp=2"])


def check_the_whole_model_2():
    """What transformers opens is what one process would have written."""
    for layout in ("ddp", "fsdp", "tp=2"):
        made = loaded(FOLDER / "saved/fsdp_2", layout)
        params = made.gathered()
        whole = loaded(FOLDER / "saved/fsdp_2").model.params
        assert not params if made.ranks.rank else all(np.array_equal(params[name], whole[name]) for name in whole)


def check_shards_are_missed_2():
    folder = FOLDER / "damaged"
    saved(folder, "fsdp")
    shard, index = max(folder.glob("shard-*")), folder / "shards.json"
    content = shard.read_bytes()
    file = SafeTensors(shard)
    tensors = {name: np.array(file[name]) for name in file.keys()}
    record = file.metadata[RECORD]
    twice = json.dumps(json.loads(record) | {"m.wte": {"saved_offsets": [0, 0]}})

    def rewritten(change, record):
        changed = {name: change(x) for name, x in tensors.items()}
        return lambda: write_safetensors(shard, changed, {RECORD: record})

    for damage, message in (
            (lambda: shard.write_bytes(content[:-1]), "cut off"),
            (rewritten(lambda x: x * np.nan, record), "must be finite numbers"),
            (rewritten(lambda x: x - 1e3, record), "must be finite numbers, those of v.* 0 or more"),
            (rewritten(lambda x: x.astype(int), record), "torch.int64, must be"),
            (rewritten(np.array, "nonsense"), f"{shard.name}: {RECORD} in its header must be JSON"),
            (rewritten(np.array, twice), "m.wte"),
            (lambda: shard.write_bytes(content) and index.write_text('{"shards": []}'), "lists 0 shards, but 2"),
            (index.unlink, "holds shards, but no shards.json"),
            (lambda: index.write_text(json.dumps({"shards": [shard.name]})) and shard.unlink(),
             f"{shard.name} is missing, one of the 1 shards")):
        dist.barrier()
        if dist.get_rank() == 0:
            damage()
        dist.barrier()
        try:
            loaded(folder)                                                # as a whole, on each rank
        except ValueError as error:
            assert message in str(error), error
        else:
            raise AssertionError(f"a damaged checkpoint was loaded: {message}")


def check_a_sharded_checkpoint_says_what_it_is_2():
    try:
        load_pretrained(FOLDER / "saved/fsdp_2")
    except ValueError as error:
        assert "is a sharded checkpoint, which training can go on from" in str(error), error
    else:
        raise AssertionError("it holds no model.safetensors")


def check_ranks_that_disagree_2():
    made = engine(GPT2, "ddp")
    made.ranks.agree({"seed": 1})
    try:
        made.ranks.agree({"seed": made.ranks.rank})
    except ValueError as error:
        assert made.ranks.rank == 1 and "seed is 1 on rank 1, and 0 on rank 0" in str(error)
    else:
        assert made.ranks.rank == 0


def refused(layout, message, config=GPT2, **arguments):
    try:
        engine(config, layout, **arguments)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"{layout} was not refused")


def check_refusals_2():
    refused("tp=2,dp=2", "takes 4 ranks, but there are 2: start it with torchrun --nproc-per-node 4")
    refused("tp=3", "parallel is tp=3, which must divide n_head, 4")
    refused("tp=4", "must divide n_kv_head, 2", LLAMA)
    refused("tp=2", "no tensor parallelism for a mixture of experts", MOE)
    refused("ep=2", "but the model has no experts")
    refused("ep=3", "ep must divide n_expert, 4", MOE)
    refused("tp2", "parallel is 'tp2', must be ddp, fsdp, tp=N")


def main():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    faulthandler.dump_traceback_later(60, exit=True)                     # where ranks wait for each other for good
    dist.init_process_group("gloo")
    results = {}
    for name, check in list(globals().items()):
        if name.startswith("check_") and name.endswith(f"_{world}") and (not sys.argv[2:] or name in sys.argv[2:]):
            problem = ""
            try:
                check()
            except Exception:
                problem = f"rank {rank}: {traceback.format_exc()}"
            problems = [None] * world
            dist.all_gather_object(problems, problem)
            results[name] = "\n".join(filter(None, problems))
    if rank == 0:
        (FOLDER / f"results_{world}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
