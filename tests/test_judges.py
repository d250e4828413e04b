"""torch as the outside judge of the specification: every op, forward and backward, in float64 and in float32.

In float64 it says that numpy_ops.py computes the right thing. In float32 it says that the error budgets are fair: they
are wide enough for a good implementation that knows nothing of this project.
"""

import warnings

import numpy as np
import pytest

from minigpt.ops import budget, numpy_ops
from minigpt.ops import cases as all_cases

torch = pytest.importorskip("torch")
F = torch.nn.functional


def _gelu(x):
    return F.gelu(x, approximate="tanh")


def _layernorm(x, weight, bias=None, eps=1e-5):
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return y, x.mean(-1), (x.var(-1, correction=0) + eps).rsqrt()      # var_mean's mean is less exact in long rows


def _embedding(tokens, wte, wpe=None, position=0):
    x = F.embedding(tokens, wte)
    return x if wpe is None else x + F.embedding(torch.arange(position, position + tokens.shape[1]), wpe)


def _attention(q, k, v, causal=True, scale=None):
    Tq, Tk, grouped = q.shape[2], k.shape[2], q.shape[1] != k.shape[1]
    # bottom-right alignment: torch's own is_causal is top-left
    mask = torch.ones(Tq, Tk, dtype=torch.bool).tril(Tk - Tq) if causal else None
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * (scale or q.shape[-1] ** -0.5)
    return out, scores.masked_fill(~mask, -torch.inf).logsumexp(-1) if causal else scores.logsumexp(-1)


def _rope(x, cos, sin):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
    both = [torch.cat([table, table], dim=-1)[None] for table in (cos, sin)]
    return apply_rotary_pos_emb(x, x, *both)[0]


def _cross_entropy(logits, targets, ignore_index=-100):
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignore_index, reduction="none")
    return losses.reshape(targets.shape), logits.logsumexp(-1)


def _residual_layernorm(x, residual, weight, bias=None, eps=1e-5):
    return x + residual, *_layernorm(x + residual, weight, bias, eps)


def _linear_gelu(x, weight, bias=None):
    return _gelu(F.linear(x, weight, bias)), F.linear(x, weight, bias)


# A mixture of experts as one would write it without thinking of speed: every token, every choice of it.


def _scores(logits, gate):
    return logits.softmax(-1) if gate == "softmax" else logits.sigmoid()


def _gates(logits, experts, gate="softmax", normalize=True, scale=1.0):
    if normalize and gate == "softmax":                  # of the chosen alone: others get no gradient, not even noise
        return scale * logits.gather(-1, experts).softmax(-1)
    chosen = _scores(logits, gate).gather(-1, experts)
    return scale * (chosen / chosen.sum(-1, keepdim=True) if normalize else chosen)


def _router(logits, k, bias=None, gate="softmax", normalize=True, scale=1.0, groups=1, active_groups=1):
    choice = _scores(logits, gate) + (0 if bias is None else bias)
    if groups > 1:                                       # as transformers' DeepseekV3TopkRouter
        by_group = choice.view(len(choice), groups, -1).topk(2, dim=-1)[0].sum(-1)
        mask = torch.zeros_like(by_group).scatter(1, by_group.topk(active_groups, dim=-1)[1], 1).bool()
        choice = choice.masked_fill(~mask.repeat_interleave(choice.shape[1] // groups, 1), -torch.inf)
    experts = choice.topk(k, dim=-1)[1]
    return _gates(logits, experts, gate, normalize, scale), experts


def _router_losses(logits, experts, gate="softmax"):
    N, E = logits.shape
    p = F.normalize(_scores(logits, gate), p=1, dim=-1)
    f = F.one_hot(experts, E).to(p.dtype).mean((0, 1))
    return E * (f * p.mean(0)).sum(), logits.logsumexp(-1).square().mean()


def _dispatch(x, experts, n_expert):
    order = experts.flatten().sort(stable=True)[1]
    counts = F.one_hot(experts.flatten(), n_expert).sum(0)
    return (x.repeat_interleave(experts.shape[1], 0)[order], order.argsort().view(experts.shape),
            F.pad(counts.cumsum(0), (1, 0)))


def _grouped_linear(x, weight, offsets):
    return torch.cat([F.linear(x[i:j], w) for w, i, j in zip(weight, offsets, offsets[1:], strict=False)])


def _combine(rows, gates, place):
    return torch.einsum("nk,nkc->nc", gates, rows[place])


FORWARD = {
    "embedding_forward": _embedding,
    "layernorm_forward": _layernorm,
    "rmsnorm_forward": lambda x, weight, eps=1e-5: (F.rms_norm(x, x.shape[-1:], weight, eps),
                                                    ((x * x).mean(-1) + eps).rsqrt()),
    "residual_layernorm_forward": _residual_layernorm,
    "linear_forward": F.linear,
    "linear_gelu_forward": _linear_gelu,
    "gelu_forward": _gelu,
    "swiglu_forward": lambda gate, up: F.silu(gate) * up,
    "rope_forward": _rope,
    "attention_forward": _attention,
    "cross_entropy_forward": _cross_entropy,
    "squared_norm": lambda x: float(x.double().square().sum()),
    "moe_router_forward": _router,
    "router_losses_forward": _router_losses,
    "moe_dispatch_forward": _dispatch,
    "grouped_linear_forward": _grouped_linear,
    "moe_combine_forward": _combine,
}
# For each backward op, what autograd differentiates: the function, the arguments with a gradient, in the order of the
# results, and the gradients of its results.
BACKWARD = {
    "embedding_backward": (_embedding, ("wte", "wpe"), ("dx",)),
    "rmsnorm_backward": (lambda x, weight: F.rms_norm(x, x.shape[-1:], weight, 1e-5), ("x", "weight"), ("dy",)),
    "linear_backward": (F.linear, ("x", "weight", "bias"), ("dy",)),
    "gelu_backward": (_gelu, ("x",), ("dy",)),
    "swiglu_backward": (lambda gate, up: F.silu(gate) * up, ("gate", "up"), ("dy",)),
    "rope_backward": (_rope, ("x",), ("dy",)),
    "attention_backward": (lambda *args, **options: _attention(*args, **options)[0], ("q", "k", "v"), ("dout",)),
    "cross_entropy_backward": (lambda *args, **options: _cross_entropy(*args, **options)[0], ("logits",), ()),
    "moe_router_backward": (_gates, ("logits",), ("dgates",)),
    "moe_dispatch_backward": (lambda x, place: x.repeat_interleave(place.shape[1], 0)[place.flatten().argsort()],
                              ("x",), ("drows",)),
    "grouped_linear_backward": (_grouped_linear, ("x", "weight"), ("dy",)),
    "moe_combine_backward": (_combine, ("rows", "gates"), ("dy",)),
}


def tensors(arguments):
    return {name: torch.from_numpy(np.ascontiguousarray(x.astype(np.int64) if x.dtype.kind in "iu" else x))
            if isinstance(x, np.ndarray) else x for name, x in arguments.items()}


def as_arrays(results):
    results = results if isinstance(results, tuple) else (results,)
    return tuple(x.detach().numpy() if isinstance(x, torch.Tensor) else x for x in results)


def in_dtype(op, dtype):
    for case in all_cases.cases(op):
        if "a row of -inf" in case.name:        # has no softmax: the definition says NaN, torch an lse of -inf
            continue
        yield case, budget.convert(case.arguments, lambda x: x.astype(dtype))


def judge(case, arguments, results):
    for verdict in budget.judge(case.op, budget.budget(case.op, arguments), results):
        if not verdict.ok:
            pytest.fail(f"{case}: torch does not agree: {verdict}")


both_dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])


def test_every_op_has_a_judge():
    elsewhere = {"layernorm_backward", "residual_layernorm_backward", "router_losses_backward", "adamw"}
    assert {*FORWARD, *BACKWARD, *elsewhere} == set(budget.OUTPUTS)


@both_dtypes
@pytest.mark.parametrize("op", FORWARD)
def test_forward(op, dtype):
    for case, arguments in in_dtype(op, dtype):
        judge(case, arguments, as_arrays(FORWARD[op](**tensors(arguments))))


@both_dtypes
@pytest.mark.parametrize("op", BACKWARD)
def test_backward(op, dtype):
    """What autograd recomputes from the inputs, numpy_ops gets as arguments; in float64 it is made again in float64."""
    function, wanted, given = BACKWARD[op]
    for case, arguments in in_dtype(op, dtype):
        if op == "attention_backward":
            known = {name: arguments[name] for name in ("q", "k", "v", "causal", "scale")}
            arguments["out"], arguments["lse"] = numpy_ops.attention_forward(**known)
        if op == "cross_entropy_backward":
            arguments["lse"] = numpy_ops.cross_entropy_forward(arguments["logits"], arguments["targets"])[1]
        if op == "rmsnorm_backward":
            if "eps" in case.name:
                continue                                     # made with another eps than the function above has
            arguments["rstd"] = numpy_ops.rmsnorm_forward(arguments["x"], arguments["weight"])[1]
        inputs = {name: x for name, x in arguments.items() if name not in (*given, "dloss", "out", "lse", "rstd")}
        if op == "rope_backward":
            inputs = dict(x=np.zeros_like(arguments["dy"]), **inputs)          # a rotation is linear: any x will do
        if op == "moe_dispatch_backward":
            inputs = dict(x=np.zeros((len(inputs["place"]), arguments["drows"].shape[1]), dtype), **inputs)
        if op == "linear_backward":
            inputs["bias"] = np.zeros(len(inputs["weight"]), dtype)
        inputs = tensors(inputs)
        leaves = [inputs[name].requires_grad_() for name in wanted if inputs[name] is not None]
        result = function(**inputs)
        upstream = arguments[given[0]] if given else np.broadcast_to(arguments["dloss"], result.shape).astype(dtype)
        upstream = torch.from_numpy(upstream)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gradients = torch.autograd.grad(result, leaves, upstream)
        gradients = [x.numpy() for x in gradients] + [None] * (len(wanted) - len(leaves))
        judge(case, arguments, tuple(gradients))


@both_dtypes
@pytest.mark.parametrize("residual", [False, True], ids=["layernorm", "residual_layernorm"])
def test_layernorm_backward(residual, dtype):
    """torch's backward op takes mean and rstd as ours does; autograd would use its own, rounded differently. Rows far
    from 0 are left out: torch multiplies x - mean out, and loses the digits that they have in common."""
    op = "residual_layernorm_backward" if residual else "layernorm_backward"
    for case, arguments in in_dtype(op, dtype):
        if "far from 0" in case.name:
            continue
        t = tensors(arguments)
        dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
            t["dy"], t["h" if residual else "x"], t["weight"].shape, t["mean"][..., None], t["rstd"][..., None],
            t["weight"], torch.zeros_like(t["weight"]), [True, True, True])
        judge(case, arguments, as_arrays((dx + t["dh"] if residual else dx, dweight, dbias)))


@both_dtypes
def test_router_losses_backward(dtype):
    for case, arguments in in_dtype("router_losses_backward", dtype):
        t = tensors(arguments)
        balance, z = _router_losses(t["logits"].requires_grad_(), t["experts"], t["gate"])
        loss = t["dbalance"] * balance + t["dz"] * z
        judge(case, arguments, as_arrays(torch.autograd.grad(loss, t["logits"])))


@both_dtypes
def test_adamw(dtype):
    for case, arguments in in_dtype("adamw", dtype):
        t = tensors(budget.convert(arguments, np.copy))
        param = t["param"].requires_grad_()
        param.grad = t["grad"] * t["grad_scale"]
        optimizer = torch.optim.AdamW([param], lr=t["lr"], betas=(t["beta1"], t["beta2"]), eps=t["eps"],
                                      weight_decay=t["weight_decay"])
        optimizer.state[param] = {"step": torch.tensor(float(t["step"] - 1)), "exp_avg": t["m"], "exp_avg_sq": t["v"]}
        optimizer.step()
        judge(case, arguments, as_arrays((param, t["m"], t["v"])))
