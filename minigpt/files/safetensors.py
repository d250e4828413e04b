"""The safetensors format, read and written with NumPy alone. A file is

    8 bytes     the length of the header, little-endian
    header      JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {...}}
    data        the tensors, little-endian and row by row; the offsets count from here

and nothing in it can be executed. (The package of the same name does the same, but not bfloat16 without torch.)
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from .atomic import atomic_write
from .json_file import parse_json

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
          "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
          "BF16": "<u2"}                        # NumPy has no bfloat16: read as its bits, see SafeTensors.__getitem__
NAMES = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}


def write_safetensors(path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None):
    """Writes the arrays to `path`, which holds either what was there before or all of them, never a part."""
    header = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, x in tensors.items():
        if x.dtype.newbyteorder("<") not in NAMES:
            raise TypeError(f"write_safetensors: {name} is {x.dtype}, must be one of {', '.join(map(str, NAMES))}")
        begin, end = end, end + x.nbytes
        dtype = NAMES[x.dtype.newbyteorder("<")]
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)                                       # so that the data is aligned
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for x in tensors.values():
            file.write(np.ascontiguousarray(x, x.dtype.newbyteorder("<")).data)


class SafeTensors:
    """A file open for reading: {name: array}, each read when it is asked for. ValueError, naming the file, for one
    that is cut off or is not a safetensors file.

    metadata  {name: text}
    shapes    {name: shape}
    """

    def __init__(self, path):
        self.path = Path(path)
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= size - 8:
                raise ValueError(f"{path}: not a safetensors file, or cut off: its first 8 bytes announce a header of "
                                 f"{length} bytes, but {max(size - 8, 0)} follow")
            text = file.read(length)
        header = parse_json(text, f"{path}: not a safetensors file: its header")
        self.metadata = header.pop("__metadata__", {})
        if not isinstance(self.metadata, dict) or not all(isinstance(value, str) for value in self.metadata.values()):
            raise ValueError(f"{path}: __metadata__ is {self.metadata!r}, must be texts by name")
        self._entries = {name: self._entry(name, entry, size - 8 - length) for name, entry in header.items()}
        self._check_that_tensors_fill(size - 8 - length)
        self.shapes = {name: shape for name, (_, shape, _) in self._entries.items()}
        self._data = np.memmap(self.path, np.uint8, "r", 8 + length) if size > 8 + length else np.empty(0, np.uint8)

    def _entry(self, name, entry, data_size):
        try:
            dtype, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: not a safetensors file: its header says {entry!r} of {name} "
                             f"({error!r})") from None
        if dtype not in DTYPES:
            raise ValueError(f"{self.path}: tensor {name} is {dtype}, must be one of {', '.join(DTYPES)}")
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)) \
                or end - begin != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
            raise ValueError(f"{self.path}: tensor {name} is {dtype} {shape}, which bytes {begin} .. {end} do not fit")
        if end > data_size:
            raise ValueError(f"{self.path}: cut off: tensor {name} ends at byte {end} of {data_size} that are there")
        return dtype, shape, slice(begin, end)

    def _check_that_tensors_fill(self, data_size):
        """One tensor begins where the one before ends: no byte belongs to two of them, or to none."""
        end = 0
        for name, (_, _, place) in sorted(self._entries.items(), key=lambda item: (item[1][2].start, item[1][2].stop)):
            if place.start != end:
                raise ValueError(f"{self.path}: tensor {name} begins at byte {place.start}, must begin at {end}, where "
                                 "the one before it ends")
            end = place.stop
        if end != data_size:
            raise ValueError(f"{self.path}: the tensors end at byte {end}, must fill all {data_size}")

    def keys(self):
        return self._entries.keys()

    def __getitem__(self, name) -> np.ndarray:
        """The tensor as it lies in the file (not writable, perhaps not aligned); bfloat16 as float32."""
        dtype, shape, place = self._entries[name]
        x = self._data[place].view(DTYPES[dtype]).reshape(shape)
        if dtype == "BF16":
            return (x.astype(np.uint32) << 16).view(np.float32)           # float32 with 16 bits less of mantissa
        return np.asarray(x)
