"""AdamW over a model's parameters, and the global norm by which gradients are clipped."""

import math

import numpy as np

from ..ops.memory import aligned_zeros


class AdamW:
    """The moments m and v of every parameter. Only matrices decay: a bias or the weight of a norm is there to shift
    and scale, and pulling it towards 0 would do no good."""

    def __init__(self, params, ops, beta1, beta2, eps, weight_decay):
        self.params, self.ops = params, ops
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.m = {name: aligned_zeros(p.shape, p.dtype) for name, p in params.items()}
        self.v = {name: aligned_zeros(p.shape, p.dtype) for name, p in params.items()}

    def step(self, grads, number, lr, grad_scale):
        """Moves every parameter, in place. `number` counts the steps from 1."""
        for name, p in self.params.items():
            self.ops.adamw(p, grads[name], self.m[name], self.v[name], number, lr, self.beta1, self.beta2, self.eps,
                           self.weight_decay if decays(p) else 0.0, grad_scale)

    def state_dict(self):
        return {f"{kind}.{name}": moment for kind in ("m", "v") for name, moment in getattr(self, kind).items()}

    def load_state_dict(self, state):
        moments = self.state_dict()
        saved = read_moments(state, {name: moment.shape for name, moment in moments.items()})
        for name, moment in moments.items():
            moment[...] = saved[name]


def decays(param):
    return param.ndim >= 2


def read_moments(file, shapes):
    """{name: array} of a saved optimiser, an open SafeTensors. ValueError names the file if it does not hold just these
    {name: shape}, or numbers that no moment can be."""
    for name in sorted(shapes.keys() ^ file.keys()):
        raise ValueError(f"{file.path}: {name} is {'missing' if name in shapes else 'none of this optimiser'}")
    saved = {name: file[name] for name in shapes}
    for name, x in saved.items():
        if x.shape != tuple(shapes[name]) or x.dtype.kind != "f":
            raise ValueError(f"{file.path}: {name} is {x.dtype} of shape {x.shape}, must be floating point of shape "
                             f"{tuple(shapes[name])}")
        if not np.isfinite(x).all() or name.startswith("v.") and (x < 0).any():
            raise ValueError(f"{file.path}: {name} must be finite numbers, those of v.* 0 or more")
    return saved


def global_norm(grads, ops):
    """The length of all gradients taken as one vector."""
    return math.sqrt(sum(ops.squared_norm(g) for g in grads.values()))


def clip_scale(norm, max_norm):
    """The factor that brings a gradient of length `norm` down to at most max_norm (0: no limit)."""
    return min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
