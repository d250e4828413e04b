"""Muon (K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024): the momentum of a matrix,
made orthogonal.

A gradient's few large singular values drown the many small ones, and a step along it moves the weights in few
directions. Muon steps along U V^T instead, where the momentum is U S V^T: all directions count alike. U V^T comes from
matrix products alone, by the iteration of Newton and Schulz: an odd polynomial p(x) = a x + b x^3 + c x^5, applied to a
matrix, applies itself to the singular values. Its coefficients were chosen for the slope at 0: five rounds take all
above 0.0015 of the matrix' norm to between about 0.7 and 1.2, which is near enough to 1; smaller ones grow 485-fold.

It is for the matrices of the layers; embeddings, head, norms, biases and routers go on with AdamW. What is packed into
one array are matrices of their own: the projections to queries, keys and values, and those of each expert.
"""

import numpy as np

from ..ops.memory import aligned_zeros
from .optimizer import AdamW, read_moments

A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5
MOMENTUM = 0.95


def is_hidden(name, ndim):
    """Whether Muon moves the parameter of that name: the matrices of a layer, and each of its experts'."""
    return name.startswith("h.") and ndim >= 2 and ".router." not in name


def rows_of_matrices(name, shape, config):
    """The number of rows of each matrix in a hidden parameter, from the top: of qkv, the packed projection, three."""
    if name.endswith("attn.qkv.weight"):
        return tuple(heads * config.head_size for heads in (config.n_head, config.n_kv_head, config.n_kv_head))
    return shape[-2],


def orthogonalised(x, ops):
    """x (rows, columns) -> the matrix with the same singular vectors and singular values near 1."""
    if x.shape[0] > x.shape[1]:
        return orthogonalised(x.T, ops).T                                # the smaller of x x^T and x^T x
    x = x / (np.sqrt(x.dtype.type(ops.squared_norm(x))) + x.dtype.type(1e-7))   # no singular value is above 1
    for _ in range(ROUNDS):
        gram = ops.linear_forward(x, x)                                                             # x x^T
        polynomial = B * gram + C * ops.linear_forward(gram, gram)               # gram is symmetric: gram gram^T
        x = A * x + ops.linear_forward(polynomial, np.ascontiguousarray(x.T))                       # polynomial x
    return x


def matrices(x, rows):
    """Views of the matrices in x, a hidden parameter or its update: of a stack of experts, those of each."""
    stack = x.reshape(-1, *x.shape[-2:])
    return [matrix for array in stack for matrix in np.split(array, np.cumsum(rows)[:-1])]


class Muon:
    """With the interface of AdamW; `config` is the model's. `muon_lr` is the learning rate of the matrices while the
    schedule is at its highest, where AdamW's is `adamw_lr`. The momentum is kept as m.<name>."""

    def __init__(self, params, config, ops, muon_lr, adamw_lr, weight_decay, **adamw):
        self.hidden = {name: p for name, p in params.items() if is_hidden(name, p.ndim)}
        rest = {name: p for name, p in params.items() if name not in self.hidden}
        self.adamw = AdamW(rest, ops, weight_decay=weight_decay, **adamw)
        self.rows = {name: rows_of_matrices(name, p.shape, config) for name, p in self.hidden.items()}
        self.ops, self.lr_ratio, self.weight_decay = ops, muon_lr / adamw_lr, weight_decay
        self.m = {name: aligned_zeros(p.shape, p.dtype) for name, p in self.hidden.items()}

    def step(self, grads, number, lr, grad_scale):
        self.adamw.step(grads, number, lr, grad_scale)
        lr = lr * self.lr_ratio
        for name, p in self.hidden.items():
            m, g = self.m[name], grad_scale * grads[name]
            m += (1 - MOMENTUM) * (g - m)
            update = (1 - MOMENTUM) * g + MOMENTUM * m                                  # Nesterov's: one step ahead
            p *= 1 - lr * self.weight_decay
            for weight, along in zip(*(matrices(x, self.rows[name]) for x in (p, update)), strict=True):
                rows, columns = weight.shape
                weight -= lr * max(1, rows / columns) ** 0.5 * orthogonalised(along, self.ops)

    def state_dict(self):
        return {f"m.{name}": m for name, m in self.m.items()} | self.adamw.state_dict()

    def load_state_dict(self, state):
        moments = self.state_dict()
        saved = read_moments(state, {name: moment.shape for name, moment in moments.items()})
        for name, moment in moments.items():
            moment[...] = saved[name]
