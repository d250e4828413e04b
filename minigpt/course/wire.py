"""Messages between the grader and a student's process: JSON for the structure, raw bytes for the arrays.

A message is 8 bytes with the length of the JSON, the JSON, and the bytes of every array in order. Nothing is ever
unpickled, and what arrives is believed in nothing but its numbers. Imports NumPy alone: it runs on both sides.
"""

import json
import math

import numpy as np

DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "bool")
LARGEST_JSON, LARGEST = 2**20, 2**28      # bytes; a message of more is refused


class BadMessage(Exception):
    """What came is no message."""


def pack(value) -> bytes:
    """The bytes of a message. TypeError for a value that is no number, string, array or list, tuple, dict of these."""
    arrays = []

    def plain(x):
        if x is None or isinstance(x, (bool, int, float, str)):
            return x
        if isinstance(x, np.ndarray) and x.dtype.name in DTYPES:
            arrays.append(np.ascontiguousarray(x).tobytes())
            return {"array": x.dtype.name, "shape": x.shape}
        if isinstance(x, np.generic) and x.dtype.name in DTYPES:
            return plain(np.asarray(x))
        if isinstance(x, tuple):
            return {"tuple": [plain(y) for y in x]}
        if isinstance(x, list):
            return [plain(y) for y in x]
        if isinstance(x, dict) and all(isinstance(key, str) for key in x):
            return {"dict": {key: plain(y) for key, y in x.items()}}
        kind = f"array of {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"a value of type {kind} cannot be handed over, only numbers and NumPy arrays of numbers")

    head = json.dumps(plain(value)).encode()
    if len(head) > LARGEST_JSON or sum(map(len, arrays)) > LARGEST:
        raise TypeError(f"the values have {len(head) + sum(map(len, arrays))} bytes, more than can be handed over")
    return len(head).to_bytes(8, "little") + head + b"".join(arrays)


def unpack(read):
    """The value of a message. read(n) gives the next n bytes. BadMessage if it is none."""
    length = int.from_bytes(read(8), "little")
    if length > LARGEST_JSON:
        raise BadMessage(f"a message of {length} bytes")
    left = LARGEST

    def value(x):
        nonlocal left
        if isinstance(x, list):
            return [value(y) for y in x]
        if not isinstance(x, dict):
            return x
        if "tuple" in x:
            return tuple(value(y) for y in x["tuple"])
        if "dict" in x:
            return {key: value(y) for key, y in x["dict"].items()}
        if x["array"] not in DTYPES or any(type(n) is not int or n < 0 for n in x["shape"]):
            raise BadMessage("an array that is none")
        dtype = np.dtype(x["array"])
        left -= (size := math.prod(x["shape"]) * dtype.itemsize)
        if left < 0:
            raise BadMessage("arrays that are too large")
        return np.frombuffer(read(size), dtype).reshape(x["shape"]).copy()

    try:
        return value(json.loads(read(length)))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadMessage(str(error)) from None
