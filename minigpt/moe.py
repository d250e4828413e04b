"""The mixture of experts in the place of an MLP: a branch of the model's layers, forward and backward.

Read `experts_forward` and `experts_backward` side by side: each line of the one has its counterpart in the other, in
reverse order. Shapes are those of ops/numpy_moe.py: N = B T tokens, E experts, k active, R = N k rows, C = n_embd,
F = expert_inner.

`balance_experts` is what keeps the load even without a loss (Wang et al. 2024, arXiv:2408.15664; DeepSeek-V3): after
each step of the optimiser the bias of an expert that got more than its share of the tokens goes down by a fixed rate,
that of one that got less goes up. No gradient flows to it.
"""

import numpy as np


def experts_forward(model, name, x):
    """x (B, T, C) -> branch (B, T, C)."""
    (B, T, C), config, ops, own, buffer = x.shape, model.config, model.ops, model.own(name), model.buffer
    N, E, k, F = B * T, config.n_expert, config.n_expert_active, config.expert_inner
    router, bias = model.weight_and_bias(name + ".router")
    weight = {part: model.weight_and_bias(f"{name}.experts.{part}")[0] for part in ("gate", "up", "down")}
    x = x.reshape(N, C)
    logits = ops.linear_forward(x, router, out=buffer(own + ".logits", N, E))                       # (N, E)
    gates, experts = ops.moe_router_forward(logits, k, bias, config.gate, config.normalize_gates, config.route_scale,
                                            config.n_expert_group, config.n_expert_group_active)    # (N, k)
    rows, place, offsets = ops.moe_dispatch_forward(x, experts, E, out=(buffer(own + ".rows", N * k, C), None, None))
    gate = ops.grouped_linear_forward(rows, weight["gate"], offsets, out=buffer(own + ".gate", N * k, F))   # (R, F)
    up = ops.grouped_linear_forward(rows, weight["up"], offsets, out=buffer(own + ".up", N * k, F))         # (R, F)
    act = ops.swiglu_forward(gate, up, out=buffer(own + ".act", N * k, F))                                  # (R, F)
    out = ops.grouped_linear_forward(act, weight["down"], offsets, out=buffer(own + ".out", N * k, C))      # (R, C)
    branch = ops.moe_combine_forward(out, gates, place, out=buffer("experts", N, C)).reshape(B, T, C)
    if config.n_expert_shared:
        branch += model.mlp_forward(name + ".shared", x.reshape(B, T, C))
    if model.keep:
        model.saved[name] = x, logits, gates, experts, rows, place, offsets, gate, up, act, out
        _count(model, name, logits, experts, offsets)
    return branch


def experts_backward(model, name, dbranch):
    """dbranch (B, T, C) -> dx (B, T, C)."""
    x, logits, gates, experts, rows, place, offsets, gate, up, act, out = model.saved[name]
    (N, C), config, ops, buffer = x.shape, model.config, model.ops, model.buffer

    def through(part, dy, x, dx):
        """Back through one of the linear layers of all experts; dx names a buffer."""
        part, dx = f"{name}.experts.{part}", buffer(dx, *x.shape)
        (weight, _), (dweight, _) = model.weight_and_bias(part), model.grads_of(part)
        ops.grouped_linear_backward(dy, x, weight, offsets, grads=(dx, dweight), accumulate=True)
        return dx

    dout, dgates = ops.moe_combine_backward(dbranch.reshape(N, C), out, gates, place,
                                            grads=(buffer("dout", *out.shape), None))               # (R, C), (N, k)
    dact = through("down", dout, act, "dact")                                                       # (R, F)
    dgate, dup = ops.swiglu_backward(dact, gate, up, grads=(buffer("dgate", *act.shape), buffer("dup", *act.shape)))
    drows = through("up", dup, rows, "drows")                                                       # (R, C)
    drows += through("gate", dgate, rows, "dout")
    dx = ops.moe_dispatch_backward(drows, place, grads=buffer("dexperts", N, C))                    # (N, C)
    dlogits = ops.moe_router_backward(dgates, logits, experts, config.gate, config.normalize_gates,
                                      config.route_scale, grads=buffer("dlogits", *logits.shape))   # (N, E)
    if config.router_aux_loss or config.router_z_loss:
        dbalance, dz = config.router_aux_loss * model.share, config.router_z_loss * model.share
        dlogits += ops.router_losses_backward(dbalance, dz, logits, experts, config.gate)
    (router, _), (drouter, _) = model.weight_and_bias(name + ".router"), model.grads_of(name + ".router")
    dx += ops.linear_backward(dlogits, x, router, grads=(buffer("dx", N, C), drouter, None), accumulate=True)[0]
    dx = dx.reshape(dbranch.shape)
    if config.n_expert_shared:
        dx += model.mlp_backward(name + ".shared", dbranch)
    return dx


def _count(model, name, logits, experts, offsets):
    """Adds up how many tokens each expert got since zero_grad(), and what the losses of the router are."""
    config, layer = model.config, model.config.stored_name(name)
    model.expert_counts[layer] = model.expert_counts.get(layer, 0) + np.diff(offsets)               # (E,)
    if config.router_aux_loss or config.router_z_loss:
        balance, z = model.ops.router_losses_forward(logits, experts, config.gate)
        model.router_loss += config.router_aux_loss * float(balance) + config.router_z_loss * float(z)


def balance_experts(model):
    """Moves every router's bias by router_bias_rate towards an even load of the tokens counted since zero_grad()."""
    rate = model.config.router_bias_rate
    for layer, counts in model.expert_counts.items():
        bias = model.params.get(layer + ".router.bias")
        if bias is not None:
            bias += (rate * np.sign(counts.mean() - counts)).astype(bias.dtype)                     # (E,)


def expert_load(model):
    """For each layer with experts, the tokens of the busiest since zero_grad() over those of the average: 1 is even,
    n_expert / n_expert_active is the most that there can be, an expert that gets every token."""
    return [float(counts.max() / counts.mean()) for counts in model.expert_counts.values()]
