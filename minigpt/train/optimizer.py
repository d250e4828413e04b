"""AdamW over a model's parameters, and the global norm by which gradients are clipped."""

import math

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
        for name, moment in self.state_dict().items():
            moment[...] = read_moment(state, name, moment.shape)


def decays(param):
    return param.ndim >= 2


def read_moment(state, name, shape):
    """One array of a saved optimiser; ValueError if it is not as it must be."""
    if name not in state.keys() or tuple(state[name].shape) != tuple(shape):
        found = f"has shape {state[name].shape}" if name in state.keys() else "is missing"
        raise ValueError(f"optimizer state: {name} {found}, must be of shape {tuple(shape)}")
    return state[name]


def global_norm(grads, ops):
    """The length of all gradients taken as one vector."""
    return math.sqrt(sum(ops.squared_norm(g) for g in grads.values()))


def clip_scale(norm, max_norm):
    """The factor that brings a gradient of length `norm` down to at most max_norm (0: no limit)."""
    return min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
