"""Which part of every parameter a rank holds, in each layout of ranks.py. Models are cut by what stands here, and
checkpoints written and read.

A Place is an axis and the ranges along it, in the order in which they lie in the rank's own tensor. Mostly that is one
range. The rows of attn.qkv are those of all query heads, then the keys', then the values', so a rank of tensor
parallelism has three.
"""

from typing import NamedTuple

import torch
from torch.distributed.tensor import DTensor

from ..config import is_trained

# Of a layer's matrices (out, in), the axis that tensor parallelism cuts; of the biases, those of an output that is cut.
TENSOR_CUT = {"attn.qkv.weight": 0, "attn.qkv.bias": 0, "attn.proj.weight": 1, "mlp.gate.weight": 0,
              "mlp.gate.bias": 0, "mlp.up.weight": 0, "mlp.up.bias": 0, "mlp.down.weight": 1}


class Place(NamedTuple):
    axis: int
    ranges: list  # of (start, stop)


class Piece(NamedTuple):
    """A rectangle of a named tensor."""

    shape: tuple  # of the whole tensor
    offset: tuple  # of the rectangle in it
    data: torch.Tensor  # the rectangle, a view of the memory where it lives

    @property
    def where(self):
        """The rectangle as an index into the whole."""
        return tuple(slice(start, start + size) for start, size in zip(self.offset, self.data.shape, strict=True))


def whole(name, config):
    return Place(0, [(0, config.parameter_shapes()[name][0])])


def fsdp(name, config, rank, ranks):
    """torch cuts rows into runs of ceil(rows / ranks); the last ranks may have fewer, or none."""
    if not is_trained(name):
        return whole(name, config)                                        # a buffer, which is not cut
    rows = config.parameter_shapes()[name][0]
    run = -(-rows // ranks)
    return Place(0, [(min(rank * run, rows), min((rank + 1) * run, rows))])


def tp(name, config, rank, ranks):
    axis = TENSOR_CUT.get(name.split(".", 2)[-1])
    if axis is None:
        return whole(name, config)
    ranges, start = [], 0
    for size in _parts(name, config).values() if axis == 0 else [config.parameter_shapes()[name][1]]:
        ranges.append((start + rank * size // ranks, start + (rank + 1) * size // ranks))
        start += size
    return Place(axis, ranges)


def ep(name, config, rank, ranks):
    if ".experts." not in name:
        return whole(name, config)
    return Place(0, [(rank * config.n_expert // ranks, (rank + 1) * config.n_expert // ranks)])


def cut(tensor, place):
    """The part of a whole tensor, in memory of its own."""
    return torch.cat([tensor.narrow(place.axis, start, stop - start) for start, stop in place.ranges], place.axis)


def pieces(tensors, config, place):
    """{name: Piece} of the local tensors {name: tensor} of a rank; place(name, config) is theirs. Where a tensor's rows
    are those of q, k and v, these are pieces apart."""
    found, shapes = {}, config.parameter_shapes()
    for name, tensor in tensors.items():
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        axis, ranges = place(name, config)
        here = 0                                                          # where a range begins in the local tensor
        for start, stop in ranges:
            there = 0                                                     # where a part begins in the whole
            for part, size in _parts(name, config).items() if axis == 0 else [(name, shapes[name][axis])]:
                first, last = max(start, there), min(stop, there + size)
                if first < last:
                    shape, offset = list(shapes[name]), [0] * tensor.ndim
                    shape[axis], offset[axis] = size, first - there
                    found[part] = Piece(tuple(shape), tuple(offset), tensor.narrow(axis, here + first - start,
                                                                                   last - first))
                there += size
            here += stop - start
    return found


def _parts(name, config):
    """{name: rows} of what a parameter's rows consist of."""
    if ".attn.qkv." not in name:
        return {name: config.parameter_shapes()[name][0]}
    heads = {"q": config.n_head, "k": config.n_kv_head, "v": config.n_kv_head}
    return {name.replace(".qkv.", f".{part}."): n * config.head_size for part, n in heads.items()}


def part_shapes(config):
    """{name: shape} of what the names of pieces stand for."""
    shapes = config.parameter_shapes()
    return {part: (rows, *shapes[name][1:]) for name in shapes for part, rows in _parts(name, config).items()}


def split(arrays, config):
    """{name of a piece: whole array} of {name of the model: array}."""
    found = {}
    for name, array in arrays.items():
        start = 0
        for part, size in _parts(name, config).items():
            found[part] = array[start:start + size]
            start += size
    return found


def joined(parts, config):
    """The other way round, for tensors."""
    return {name: torch.cat([parts[part] for part in _parts(name, config)]) for name in config.parameter_shapes()}
