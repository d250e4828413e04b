"""The mixture of experts of the torch twin: minigpt/moe.py as a module, and expert parallelism.

Experts stands where a dense layer has its MLP, with the names of parameters and the numbers of model.py. Where
it has a `group` of processes, each of them keeps its share of the experts, and tokens travel: every process sends its
rows to where their experts are, and gets them back in the same order (GShard, arXiv:2006.16668). What comes out is what
one process with all experts computes, and so are the gradients: a process collects those of its experts from the tokens
of all processes.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from ..ops.numpy_moe import SMALL


class Weight(nn.Module):
    """A parameter under the name <module>.weight, and for a router the bias of the choice, which no gradient moves."""

    def __init__(self, *shape, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.register_buffer("bias", torch.empty(shape[0]) if bias else None)


class Experts(nn.Module):
    """x (B, T, C) -> branch (B, T, C). `shared` is the MLP that every token goes through besides, or None.

    group   processes that share the experts out: this one has E / n of them, in the order of the ranks (parallel.py)
    counts  (E,), how many tokens of this process each expert got while gradients were computed, or None
    share   what the losses of the router are multiplied by: the next batch's part of the tokens, times a loss scale
    """

    def __init__(self, config, ops, shared=None):
        super().__init__()
        C, E, width = config.n_embd, config.n_expert, config.expert_inner
        self.config, self.ops, self.group, self.counts, self.share = config, ops, None, None, 1.0
        self.router = Weight(E, C, bias=config.router_bias)
        self.experts = nn.ModuleDict({"gate": Weight(E, width, C), "up": Weight(E, width, C),
                                      "down": Weight(E, C, width)})
        self.shared = shared

    def forward(self, x):
        rows = x.flatten(0, -2)                                                                     # (N, C)
        gates, experts = self._route(rows)                                                          # (N, k)
        order = experts.flatten().argsort(stable=True)                                              # (R,): n k + j
        counts = torch.bincount(experts.flatten(), minlength=self.config.n_expert)                  # (E,)
        if torch.is_grad_enabled():
            self.counts = counts if self.counts is None else self.counts + counts
        out = self._through_experts(rows[order // gates.shape[1]], counts)                          # (R, C)
        out = out[order.argsort()].view(*gates.shape, -1)                                           # (N, k, C)
        branch = (gates.to(out.dtype)[..., None] * out).sum(1).view(x.shape)                        # (B, T, C)
        return branch if self.shared is None else branch + self.shared(x)

    def _route(self, x):
        """gates and experts (N, k) of the tokens x (N, C): moe_router_forward. Logits and scores are of 32 bits at
        least, under autocast too: of 16, near ones change places (Switch Transformer, arXiv:2101.03961, 2.4)."""
        config, dtype = self.config, torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(dtype), self.router.weight.to(dtype))                            # (N, E)
        s = logits.softmax(-1) if config.gate == "softmax" else logits.sigmoid()                    # (N, E)
        with torch.no_grad():
            choice = s if self.router.bias is None else s + self.router.bias
            if config.n_expert_group > 1:
                by_group = choice.unflatten(-1, (config.n_expert_group, -1))                        # (N, groups, E/g)
                groups = best(by_group.topk(2)[0].sum(-1), config.n_expert_group_active)
                outside = torch.ones(by_group.shape[:2], dtype=torch.bool, device=x.device).scatter(1, groups, False)
                choice = by_group.masked_fill(outside[..., None], -torch.inf).flatten(1)            # (N, E)
            experts = best(choice, config.n_expert_active)                                          # (N, k)
        gates = s.gather(-1, experts)                                                               # (N, k)
        if config.normalize_gates:
            gates = gates / (gates.sum(-1, keepdim=True) + SMALL)
        if config.router_aux_loss or config.router_z_loss:
            gates = AddLoss.apply(gates, self._losses(logits, s, experts), self.share)
        return gates * config.route_scale, experts

    def _losses(self, logits, s, experts):
        """What the router adds to the loss: router_losses_forward, times the coefficients."""
        E = self.config.n_expert
        p = s / s.sum(-1, keepdim=True)                                                             # (N, E)
        f = torch.bincount(experts.flatten(), minlength=E).to(p.dtype) / experts.numel()            # (E,)
        return (self.config.router_aux_loss * E * (f * p.mean(0)).sum()
                + self.config.router_z_loss * logits.logsumexp(-1).square().mean())

    def _through_experts(self, rows, counts):
        """rows (R, C), sorted by expert, counts (E,) of them for each -> what the experts make of them, (R, C)."""
        if self.group is None:
            return self._mlps(rows, counts.tolist())
        return expert_parallel_rows(rows, counts, self._mlps, self.group)

    def _mlps(self, rows, counts):
        """The MLP of each expert here, over its segment of rows."""
        return torch.cat([
            F.linear(self.ops.swiglu(F.linear(x, gate), F.linear(x, up)), down)                     # (rows of e, C)
            for x, gate, up, down in zip(rows.split(counts), *(self.experts[part].weight for part in self.experts),
                                         strict=True)])


class AddLoss(torch.autograd.Function):
    """Adds share * loss to the loss that will be differentiated, from the middle of the model, where it is known:
    forward, x goes through as it is; backward, the loss gets its gradient."""

    @staticmethod
    def forward(ctx, x, loss, share):
        ctx.gradient = torch.full_like(loss, share)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx):
        return dx, ctx.gradient, None


def best(scores, k):
    """The indices of the k largest of each row; of equal ones the first, as in NumPy (topk promises no order)."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :k]


# ---------------------------------------------------------------------------------------------------------------
# balancing


def experts_of(model):
    return [module for module in model.modules() if isinstance(module, Experts)]


@torch.no_grad()
def balance_experts(model):
    """As minigpt.moe.balance_experts, by the tokens of all processes; returns the load of each layer, that of the
    busiest expert over the mean, and starts counting anew."""
    loads = []
    for layer in experts_of(model):
        counts = layer.counts.double()                                                              # (E,)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        if layer.router.bias is not None:
            step = torch.sign(counts.mean() - counts).to(layer.router.bias)
            layer.router.bias += layer.config.router_bias_rate * step
        loads.append(float(counts.max() / counts.mean()))
        layer.counts = None
    return loads


# ---------------------------------------------------------------------------------------------------------------
# expert parallelism


def expert_parallel_rows(rows, counts, mlps, group):
    """rows (R, C), sorted by expert, counts (E,): sends every row to the process of its expert, where
    mlps(rows, counts) computes, and returns what comes back, (R, C)."""
    n = dist.get_world_size(group)
    counts = counts.view(n, -1)                                              # (process, its expert): what I send
    received = torch.empty_like(counts)                                      # (from process, my expert)
    dist.all_to_all_single(received, counts.contiguous(), group=group)
    send, receive = counts.sum(1).tolist(), received.sum(1).tolist()
    arrived = AllToAll.apply(rows, send, receive, group)                     # by process, then by expert
    mine = torch.arange(received.shape[1], device=rows.device).repeat(n).repeat_interleave(received.flatten())
    order = mine.argsort(stable=True)                                        # by expert, then by process
    out = mlps(arrived[order], received.sum(0).tolist())
    return AllToAll.apply(out[order.argsort()], receive, send, group)


class AllToAll(torch.autograd.Function):
    """Rows change places among processes: send[p] of them go to process p, receive[p] come from it. The gradient takes
    the way back."""

    @staticmethod
    def forward(ctx, x, send, receive, group):
        ctx.way_back = receive, send, group
        y = x.new_empty(sum(receive), *x.shape[1:])
        dist.all_to_all_single(y, x.contiguous(), receive, send, group=group)
        return y

    @staticmethod
    def backward(ctx, dy):
        return AllToAll.apply(dy, *ctx.way_back), None, None, None
