"""Training on several ranks, on torch's own engine:

    torchrun --nproc-per-node 2 -m minigpt train --engine torch --parallel ddp ...

    ddp     every rank has the model; DistributedDataParallel adds up the gradients while they are made
    fsdp    FSDP2: every rank keeps 1/n of weights, gradients and moments; those of a layer are gathered just before it
            is computed, and let go behind it
    tp=N    N ranks compute one model together, heads and columns apart (tensor_parallel.py)
    ep=N    N ranks share the experts out among themselves; tokens travel to their experts and back (moe.py)

and, with dp=M behind the last two, M copies of that. Every share of the data computes the sum of its losses over the
number of targets in all shares, so gradients are added up over ranks, never averaged: the step is that of one process
with the whole batch, however unevenly targets lie. But for router_aux_loss and router_z_loss: they are no sums over
targets, they are taken of each micro-batch by itself (an even load within it is what is asked for), so N ranks make the
step of one process that accumulates N micro-batches, each as large as a rank's.

Over NCCL where the model is on a GPU, else over gloo. Run and tested on gloo and CPUs only: no GPU, and so no NCCL, has
seen this yet.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import warnings
from dataclasses import asdict
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..files import save_config, save_pretrained
from ..ranks import Layout
from . import checkpoint, places, tensor_parallel
from .engine import MOMENTS, TorchEngine
from .moe import experts_of

TIMEOUT = datetime.timedelta(minutes=10)  # that a rank waits for the others


class Ranks:
    """The process group of a layout, and what its ranks tell each other. `run`, a dict, must be the same on all: ranks
    of other layouts or models would not only compute something else, they would wait for each other."""

    def __init__(self, layout, device_type, run):
        self._join(device_type)
        self.rank, self.device = dist.get_rank(), torch.device(device_type)
        self.agree(run)
        world = dist.get_world_size()
        dp = layout.dp or world
        if layout.inner * dp != world:
            text = f"{layout.kind}={layout.inner},dp={dp}"
            raise ValueError(f"parallel is {text}, which takes {layout.inner * dp} ranks, but there are {world}: start "
                             f"it with torchrun --nproc-per-node {layout.inner * dp}")
        self.mesh = init_device_mesh(device_type, (dp, layout.inner), mesh_dim_names=("dp", "inner"))
        self.inner, self.copies = self.mesh.get_group("inner"), self.mesh.get_group("dp")
        self.data = self.copies if layout.kind == "tp" else dist.group.WORLD      # ranks with different data
        self.data_rank, self.data_ranks = self.data.rank(), self.data.size()

    def _join(self, device_type):
        if dist.is_initialized():
            return
        if "RANK" not in os.environ:
            raise ValueError("parallel needs several ranks, and torchrun starts them: "
                             "torchrun --nproc-per-node 2 -m minigpt train ...")
        backend = "nccl" if device_type == "cuda" else "gloo"
        if not dist.is_backend_available(backend):
            raise ValueError(f"parallel needs {backend} for ranks on {device_type}, which this torch was built without")
        if device_type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))          # that of best_device()
        dist.init_process_group(backend, store=store(), rank=int(os.environ["RANK"]),
                                world_size=int(os.environ["WORLD_SIZE"]), timeout=TIMEOUT)

    def sum(self, *numbers):
        return self._reduced(numbers, dist.ReduceOp.SUM, self.data)

    def any(self, flag):
        return self._reduced([flag], dist.ReduceOp.MAX, dist.group.WORLD)[0] > 0

    def _reduced(self, numbers, op, group):
        x = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(x, op, group)
        return x.tolist()

    def wait(self):
        dist.barrier()

    def close(self):
        dist.destroy_process_group()

    def agree(self, run):
        """The first rank's is sent to all others, as JSON."""
        run = json.loads(json.dumps(run | {"torch": torch.__version__}, default=str))
        text = torch.tensor(list(json.dumps(run).encode()), dtype=torch.uint8, device=self.device)
        size = torch.tensor(len(text), device=self.device)
        dist.broadcast(size, 0)
        text = text if self.rank == 0 else text.new_empty(size)
        dist.broadcast(text, 0)
        first = json.loads(bytes(text.tolist()))
        for name in first | run:
            if first.get(name) != run.get(name):
                raise ValueError(f"the ranks disagree: {name} is {run.get(name)} on rank {self.rank}, and "
                                 f"{first.get(name)} on rank 0; start all with the same arguments, data and versions")


@functools.cache
def store():
    """Where the ranks meet: torchrun's, or else the first rank's. A restart begins with an empty one: in torchrun's
    there are still the addresses of processes that are no more."""
    mine = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and os.environ["RANK"] == "0"
    everything = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
                               int(os.environ["WORLD_SIZE"]), is_master=mine, wait_for_workers=False,
                               timeout=datetime.timedelta(seconds=60))
    return dist.PrefixStore(f"minigpt/start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", everything)


class ParallelEngine(TorchEngine):
    """TorchEngine for one rank of several."""

    def __init__(self, model, args):
        super().__init__(model, args)
        if args.torch_compile:
            raise ValueError("Trainer: torch_compile is True, must be False with parallel")
        layout = self.layout = Layout.parse(args.parallel)
        if layout.kind == "tp":
            tensor_parallel.check(model.config, layout.inner)
        if layout.kind == "ep" and (not model.config.n_expert or model.config.n_expert % layout.inner):
            raise ValueError(f"parallel is {args.parallel}, but ep must divide n_expert, {model.config.n_expert}"
                             if model.config.n_expert else f"parallel is {args.parallel}, but the model has no experts")
        if args.optim == "muon" and layout.kind in ("fsdp", "tp"):
            raise ValueError(f"Trainer: optim is 'muon', must be 'adamw' with {layout.kind}: Muon needs whole matrices")
        shared = asdict(args) | asdict(model.config) | {"dtype": model.dtype, "kernels": model.kernels}
        self.ranks = Ranks(layout, model.device.type, shared)
        inner = self.ranks.inner
        self._place = {
            "ddp": places.whole,
            "fsdp": functools.partial(places.fsdp, rank=self.ranks.rank, ranks=self.ranks.data_ranks),
            "tp": functools.partial(places.tp, rank=inner.rank(), ranks=inner.size()),
            "ep": functools.partial(places.ep, rank=inner.rank(), ranks=inner.size()),
        }[layout.kind]
        self._cut = {name for name in model.config.parameter_shapes()
                     if self._place(name, model.config) != places.whole(name, model.config)}
        self._cut_over = dist.group.WORLD if layout.kind == "fsdp" else inner
        self.module = self._shard() if layout.kind == "fsdp" else self._replicate()

    def _shard(self):
        mesh = self.ranks.mesh["dp"]
        for module in [*self.model.h, self.model]:
            fully_shard(module, mesh=mesh)
            module.set_gradient_divide_factor(1.0)                        # a sum, not a mean ...
            module.set_force_sum_reduction_for_comms(True)                # ... and not by what gloo cannot do
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")         # of views, which nobody writes to
        return self.model

    def _replicate(self):
        """Cuts what is cut, and has DistributedDataParallel add up the gradients of all copies of the rest."""
        model, ranks = self.model, self.ranks
        for name in self._cut:
            module, _, leaf = name.rpartition(".")
            part = places.cut(model.get_parameter(name).detach(), self._place(name, model.config))
            setattr(model.get_submodule(module), leaf, torch.nn.Parameter(part))
        if self.layout.kind == "tp":
            tensor_parallel.wire(model, ranks.inner)
        for layer in experts_of(model) if self.layout.kind == "ep" else ():
            layer.group = ranks.inner
        if ranks.data_ranks == 1:
            return model
        if self.layout.kind == "ep":                                      # theirs are added up in _exchange
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(self._cut))
        devices = [model.device.index] if model.device.type == "cuda" else None
        replica = DistributedDataParallel(model, devices, process_group=ranks.data, forward_sync_buffers=False)
        replica.register_comm_hook(ranks.data, _sum_of_gradients)
        return replica

    # -----------------------------------------------------------------------------------------------------------
    # the step

    def sum_of_losses(self, tokens, targets):
        total = super().sum_of_losses(tokens, targets)
        if isinstance(self.module, FSDPModule):
            self.module.reshard()                                         # which a backward pass would have done
        return total

    @contextlib.contextmanager
    def _exchange(self, now):
        """Around a micro-batch: gradients are added up over ranks after the last of a step only."""
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(now)
        waits = not now and isinstance(self.module, DistributedDataParallel)
        with self.module.no_sync() if waits else contextlib.nullcontext():
            yield
        if now and self.layout.kind == "ep" and self.ranks.copies.size() > 1:
            for name in sorted(self._cut):
                dist.all_reduce(self.model.get_parameter(name).grad, group=self.ranks.copies)

    def _norm(self):
        """Of the gradient in all ranks; what several have is counted once."""
        squares = {True: 0.0, False: 0.0}
        for name, param in self.model.named_parameters():
            if param.grad is not None:
                squares[name in self._cut] += float(_local(param.grad).norm(dtype=torch.float64)) ** 2
        if self._cut:
            squares[True] = self.ranks._reduced([squares[True]], dist.ReduceOp.SUM, self._cut_over)[0]
        return (squares[True] + squares[False]) ** 0.5

    def is_finite(self):
        return not self.ranks.any(not all(bool(_local(p).isfinite().all()) for p in self.model.parameters()))

    # -----------------------------------------------------------------------------------------------------------
    # files

    def save(self, folder, tokenizer):
        checkpoint.write(folder, self._pieces("", *MOMENTS))
        if self.ranks.rank == 0:
            save_config(self.model, folder, tokenizer)
            if self.scale:
                self.scale.save(folder)

    def save_model(self, folder, tokenizer):
        """The whole model, written by the first rank."""
        params = self.gathered()
        if params:
            whole = SimpleNamespace(config=self.model.config, params=params, eos_token_id=self.model.eos_token_id)
            save_pretrained(whole, folder, tokenizer)
        self.ranks.wait()

    def gathered(self):
        """All weights, {name: array}, on the first rank; {} on the others. A rank has -infinity where another one has a
        number, and the maximum over the ranks is the tensor."""
        config, parts, pieces = self.model.config, {}, self._pieces("")
        for name, shape in places.part_shapes(config).items():
            tensor = torch.full(shape, -torch.inf, dtype=self.model.dtype, device=self.model.device)
            if name in pieces:
                tensor[pieces[name].where] = pieces[name].data
            dist.reduce(tensor, 0, dist.ReduceOp.MAX)
            parts[name] = tensor.cpu() if self.ranks.rank == 0 else None
        if self.ranks.rank != 0:
            return {}
        return {name: tensor.numpy() for name, tensor in places.joined(parts, config).items()}


def _local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sum_of_gradients(group, bucket):
    """What DistributedDataParallel does with a bucket of gradients, in place of its mean."""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
