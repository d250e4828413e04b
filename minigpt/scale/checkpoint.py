"""Sharded checkpoints: every rank writes what it holds, and any number of ranks, in any layout, read what they need.

torch.distributed.checkpoint does the work, here into safetensors files (its own format would be a pickle). It is told
of the pieces of places.py, and where a rectangle that is wanted meets one that was written, it reads the numbers.

    shard-00001-....safetensors     what the first rank wrote: weights by name, moments as m.<name> and v.<name>
    shards.json                     the names of the files, so that none is missed
"""

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


def is_sharded(folder):
    return (Path(folder) / INDEX).exists()


def write(folder, pieces):
    """Writes {name: Piece} into a folder; every rank calls it with its own, and pieces that several hold are written
    once. All is there when it returns, on any rank."""
    dcp.save(pieces, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True), planner=_Save())
    if dist.get_rank() == 0:
        write_json(Path(folder) / INDEX, {"shards": sorted(path.name for path in Path(folder).glob("shard-*"))})
    dist.barrier()


def read(folder, pieces):
    """Fills {name: Piece} from a folder. ValueError names a shard that is missing or damaged, and a tensor that is not
    there in the shape of the pieces."""
    for name in _shards(folder):
        SafeTensors(Path(folder) / name)
    reader = dcp.HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    for name, piece in pieces.items():
        found = tuple(stored[name].size) if name in stored else None
        if found != piece.shape:
            raise ValueError(f"{folder}: {name} has shape {found}, must be {piece.shape}" if found else
                             f"{folder}: the shards lack {name}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")        # one process alone
        dcp.load(pieces, storage_reader=reader, planner=_Load(), no_dist=not dist.is_initialized())


def _shards(folder):
    names = read_json(Path(folder) / INDEX).get("shards")
    if not isinstance(names, list) or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{Path(folder) / INDEX}: shards is {names!r}, must be a list of files beside it")
    for name in names:
        if not (Path(folder) / name).is_file():
            raise ValueError(f"{folder}: {name} is missing, one of the {len(names)} shards that {INDEX} lists")
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
