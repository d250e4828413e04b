"""What the ops of numpy_moe.py demand of their arguments, as check.py does for the others, with its tools. The integers
among them index memory, so their values are looked at too."""

import numpy as np

from .check import (
    _apart,
    _integer,
    _ndim,
    _not_empty,
    _number,
    _outputs,
    _same_dtype,
    _shape,
    _writable,
    in_range,
    integers,
)

GATES = ("softmax", "sigmoid")


def _logits(op, logits, gate):
    _ndim(op, "logits", logits, 2, "(N, E)")
    _not_empty(op, "logits", logits)
    if gate not in GATES:
        raise ValueError(f"{op}: gate is {gate!r}, must be {' or '.join(GATES)}")


def _indices(op, name, x, limit):
    """An array (N, k) of indices below `limit`."""
    integers(op, name, x)
    _ndim(op, name, x, 2, "(N, k)")
    _not_empty(op, name, x)
    in_range(op, name, x, limit)


def _index_output(op, name, x, shape):
    """An array of int64 to write indices into, or None."""
    if x is None:
        return
    if not isinstance(x, np.ndarray) or x.dtype != np.int64:
        raise TypeError(f"{op}: {name} must be an array of int64")
    _shape(op, name, x, shape)


def _choices(op, experts, logits):
    """The experts (N, k) of a router with these logits (N, E)."""
    _indices(op, "experts", experts, logits.shape[1])
    if len(experts) != len(logits) or experts.shape[1] > logits.shape[1]:
        raise ValueError(f"{op}: experts has shape {experts.shape}, must be (N, k) for logits of shape {logits.shape}")


def moe_router_forward(logits, k, bias, gate, scale, groups, active_groups, out):
    op = "moe_router_forward"
    gates, experts = _outputs(op, "out", out, 2)
    _same_dtype(op, dict(logits=logits), bias=bias, gates=gates)
    _logits(op, logits, gate)
    N, E = logits.shape
    _shape(op, "bias", bias, (E,))
    _number(op, "scale", scale)
    for name, value in (("k", k), ("groups", groups), ("active_groups", active_groups)):
        _integer(op, name, value, least=1)
    if E % groups or groups > 1 and E // groups < 2:
        raise ValueError(f"{op}: groups is {groups}, must divide E, {E}, in groups of 2 or more")
    if active_groups > groups:
        raise ValueError(f"{op}: active_groups is {active_groups}, must be at most groups, {groups}")
    if k > active_groups * (E // groups):
        raise ValueError(f"{op}: k is {k}, must be at most {active_groups * (E // groups)}, the experts to choose from")
    _shape(op, "gates", gates, (N, k))
    _index_output(op, "experts", experts, (N, k))
    _apart(op, dict(logits=logits, bias=bias), gates=gates)


def moe_router_backward(dgates, logits, experts, gate, scale, grads):
    op = "moe_router_backward"
    _same_dtype(op, dict(dgates=dgates, logits=logits), grads=grads)
    _logits(op, logits, gate)
    _number(op, "scale", scale)
    _choices(op, experts, logits)
    _shape(op, "dgates", dgates, experts.shape)
    _shape(op, "grads", grads, logits.shape)
    _writable(op, "grads", grads)
    _apart(op, dict(dgates=dgates, logits=logits), grads=grads)


def router_losses_forward(logits, experts, gate):
    op = "router_losses_forward"
    _same_dtype(op, dict(logits=logits))
    _logits(op, logits, gate)
    _choices(op, experts, logits)


def router_losses_backward(dbalance, dz, logits, experts, gate, grads):
    op = "router_losses_backward"
    _number(op, "dbalance", dbalance)
    _number(op, "dz", dz)
    _same_dtype(op, dict(logits=logits), grads=grads)
    _logits(op, logits, gate)
    _choices(op, experts, logits)
    _shape(op, "grads", grads, logits.shape)
    _writable(op, "grads", grads)
    _apart(op, dict(logits=logits), grads=grads)


def moe_dispatch_forward(x, experts, n_expert, out):
    op = "moe_dispatch_forward"
    rows, place, offsets = _outputs(op, "out", out, 3)
    _same_dtype(op, dict(x=x), rows=rows)
    _ndim(op, "x", x, 2, "(N, C)")
    _not_empty(op, "x", x)
    _integer(op, "n_expert", n_expert, least=1)
    _indices(op, "experts", experts, n_expert)
    _shape(op, "experts", experts, (len(x), experts.shape[1]))
    _shape(op, "rows", rows, (experts.size, x.shape[1]))
    _index_output(op, "place", place, experts.shape)
    _index_output(op, "offsets", offsets, (n_expert + 1,))
    _apart(op, dict(x=x, experts=experts), rows=rows, place=place, offsets=offsets)


def _places(op, place, rows, name="rows"):
    """place (N, k) is where each of the rows (N k, C) lies: every number from 0 on once."""
    _ndim(op, name, rows, 2, "(R, C)")
    _indices(op, "place", place, len(rows))
    if place.size != len(rows) or np.bincount(place.reshape(-1), minlength=len(rows)).max() > 1:
        raise ValueError(f"{op}: place must hold every row of {name} once: 0 .. {len(rows) - 1}")


def moe_dispatch_backward(drows, place, grads):
    op = "moe_dispatch_backward"
    _same_dtype(op, dict(drows=drows), grads=grads)
    _places(op, place, drows, "drows")
    _shape(op, "grads", grads, (len(place), drows.shape[1]))
    _writable(op, "grads", grads)
    _apart(op, dict(drows=drows), grads=grads)


def moe_combine_forward(rows, gates, place, out):
    op = "moe_combine_forward"
    _same_dtype(op, dict(rows=rows, gates=gates), out=out)
    _places(op, place, rows)
    _shape(op, "gates", gates, place.shape)
    _shape(op, "out", out, (len(place), rows.shape[1]))
    _writable(op, "out", out)
    _apart(op, dict(rows=rows, gates=gates), out=out)


def moe_combine_backward(dy, rows, gates, place, grads):
    op = "moe_combine_backward"
    drows, dgates = _outputs(op, "grads", grads, 2)
    _same_dtype(op, dict(dy=dy, rows=rows, gates=gates), drows=drows, dgates=dgates)
    _places(op, place, rows)
    _shape(op, "gates", gates, place.shape)
    _shape(op, "dy", dy, (len(place), rows.shape[1]))
    _shape(op, "drows", drows, rows.shape)
    _shape(op, "dgates", dgates, gates.shape)
    _apart(op, dict(dy=dy, rows=rows, gates=gates), drows=drows, dgates=dgates)


def _grouped_linear(op, x, weight, offsets):
    _ndim(op, "x", x, 2, "(R, C)")
    _ndim(op, "weight", weight, 3, "(E, F, C)")
    _not_empty(op, "x", x)
    _not_empty(op, "weight", weight)
    if weight.shape[2] != x.shape[1]:
        raise ValueError(f"{op}: weight has shape {weight.shape}, must be (E, F, {x.shape[1]}), for x of {x.shape}")
    integers(op, "offsets", offsets, (len(weight) + 1,))
    if offsets[0] != 0 or offsets[-1] != len(x) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"{op}: offsets must rise from 0 to the {len(x)} rows of x")


def grouped_linear_forward(x, weight, offsets, out):
    op = "grouped_linear_forward"
    _same_dtype(op, dict(x=x, weight=weight), out=out)
    _grouped_linear(op, x, weight, offsets)
    _shape(op, "out", out, (len(x), weight.shape[1]))
    _writable(op, "out", out)
    _apart(op, dict(x=x, weight=weight), out=out)


def grouped_linear_backward(dy, x, weight, offsets, grads):
    op = "grouped_linear_backward"
    dx, dweight = _outputs(op, "grads", grads, 2)
    _same_dtype(op, dict(dy=dy, x=x, weight=weight), dx=dx, dweight=dweight)
    _grouped_linear(op, x, weight, offsets)
    _shape(op, "dy", dy, (len(x), weight.shape[1]))
    _shape(op, "dx", dx, x.shape)
    _shape(op, "dweight", dweight, weight.shape)
    _apart(op, dict(dy=dy, x=x, weight=weight), dx=dx, dweight=dweight)
