"""Sharded checkpoints: every rank writes what it holds, and any number of ranks, in any layout, read what they need.

torch.distributed.checkpoint does the work, here into safetensors files (its own format would be a pickle). It is told
of the pieces of places.py, and where a rectangle that is wanted meets one that was written, it reads the numbers.

    shard-00001-....safetensors     what the first rank wrote: weights by name, moments as m.<name> and v.<name>
    shards.json                     the names of the files, so that none is missed

config.json and the tokenizer's files lie beside them, as in any checkpoint.
"""

import json
import math
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from ..files import SafeTensors
from ..files.json_file import read_json, write_json

INDEX = "shards.json"
RECORD = "DCP_SHARDING_INFO"  # torch's name for where in the whole the tensors of a file begin


def is_sharded(folder):
    return (Path(folder) / INDEX).exists() or bool(_files(folder))


def write(folder, pieces):
    """Writes {name: Piece} into a folder; every rank calls it with its own, and pieces that several hold are written
    once. All is there when it returns, on any rank."""
    dcp.save(pieces, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True), planner=_Save())
    if dist.get_rank() == 0:
        write_json(Path(folder) / INDEX, {"shards": _files(folder)})
    dist.barrier()


def read(folder, pieces):
    """Fills {name: Piece} from a folder. ValueError names a shard that is missing or damaged, and a tensor that is not
    there as a whole, in the shape of the pieces, or holds what no weight or moment can be."""
    for name in _shards(folder):
        _check_record(SafeTensors(Path(folder) / name))
    reader = dcp.HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    for name, piece in pieces.items():
        found = tuple(stored[name].size) if name in stored else None
        if found != piece.shape:
            raise ValueError(f"{folder}: {name} has shape {found}, must be {piece.shape}" if found else
                             f"{folder}: the shards lack {name}")
        held = sum(math.prod(chunk.sizes) for chunk in stored[name].chunks)
        if held != math.prod(found) or not stored[name].properties.dtype.is_floating_point:
            raise ValueError(f"{folder}: the shards hold {held} numbers of {name}, {stored[name].properties.dtype}, "
                             f"must be {math.prod(found)} in floating point")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")        # one process alone
        dcp.load(pieces, storage_reader=reader, planner=_Load(), no_dist=not dist.is_initialized())
    for name, piece in pieces.items():
        if not piece.data.isfinite().all() or name.startswith("v.") and (piece.data < 0).any():
            raise ValueError(f"{folder}: the shards' {name} must be finite numbers, those of v.* 0 or more")


def _check_record(file):
    """ValueError if a shard does not say where in the whole each of its tensors begins."""
    text = file.metadata.get(RECORD, "null")
    try:
        starts = {name: entry["saved_offsets"] for name, entry in json.loads(text).items()}
        holds = starts.keys() == file.keys() and all(
            len(starts[name]) == len(shape) and all(type(n) is int and 0 <= n < 2**62 for n in starts[name])
            for name, shape in file.shapes.items())
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        holds = False
    if not holds:
        raise ValueError(f"{file.path}: {RECORD} in its header must be JSON with saved_offsets of every tensor")


def _files(folder):
    return sorted(path.name for path in Path(folder).glob("shard-*"))


def _shards(folder):
    if not (Path(folder) / INDEX).exists():
        raise ValueError(f"{folder}: holds shards, but no {INDEX} that lists them")
    names = read_json(Path(folder) / INDEX).get("shards")
    if not isinstance(names, list) or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{Path(folder) / INDEX}: shards is {names!r}, must be a list of files beside it")
    for name in names:
        if not (Path(folder) / name).is_file():
            raise ValueError(f"{folder}: {name} is missing, one of the {len(names)} shards that {INDEX} lists")
    if sorted(names) != _files(folder):
        raise ValueError(f"{Path(folder) / INDEX}: lists {len(names)} shards, but {len(_files(folder))} are beside it")
    return names


def _chunk(piece):
    return ChunkStorageMetadata(torch.Size(piece.offset), piece.data.shape)


class _Save(DefaultSavePlanner):
    """Plans to write pieces."""

    def __init__(self):
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def create_local_plan(self):
        def item(name, piece):
            data = TensorWriteData(_chunk(piece), TensorProperties.create_from_tensor(piece.data),
                                   torch.Size(piece.shape))
            return WriteItem(MetadataIndex(name, piece.offset), WriteItemType.SHARD, tensor_data=data)

        self.plan = SavePlan([item(name, piece) for name, piece in self.state_dict.items()])
        return self.plan

    def lookup_object(self, index):
        return self.state_dict[index.fqn].data


class _Load(DefaultLoadPlanner):
    """Plans to read pieces."""

    def set_up_planner(self, state_dict, metadata=None, is_coordinator=False):
        self.state_dict, self.metadata = state_dict, metadata

    def create_local_plan(self):
        stored = self.metadata.state_dict_metadata
        return LoadPlan([item for name, piece in self.state_dict.items()
                         for item in create_read_items_for_chunk_list(name, stored[name], [_chunk(piece)])])

    def lookup_tensor(self, index):
        return self.state_dict[index.fqn].data
