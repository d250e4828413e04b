"""Arrays of any library, seen as NumPy arrays over the same memory: nothing is copied.

check.py and the launchers look at shapes, strides, dtypes and addresses only, and NumPy has a good object for these.
So a torch tensor, or anything else that speaks DLPack, becomes a `View`. One of an array on a GPU has an address that
this process cannot read: its numbers must never be looked at. bfloat16 is BFLOAT16 here (see bfloat16.py), whosever
array it is.
"""

import ctypes
import sys

import numpy as np

from .bfloat16 import BFLOAT16, dtype_name

DEVICE_TYPES = {1: "cpu", 2: "cuda", 3: "cpu", 13: "cuda"}        # DLPack's: CPU, CUDA, pinned by CUDA, managed by CUDA
DLPACK_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}


class View(np.ndarray):
    """A NumPy array over the memory of `owner`, which lies on GPU number `device`, or on the CPU (None)."""
    owner = None
    device = None


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("kind", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


def view(x):
    """x as a NumPy array over the same memory; x itself where it is one already, or no array at all."""
    if isinstance(x, np.ndarray):
        if not x.dtype.isnative:
            raise TypeError(f"an array of {x.dtype} has the bytes of its numbers in the other order")
        return x if x.dtype.name != "bfloat16" else _view(x, x.ctypes.data, x.shape, x.strides, BFLOAT16, None)
    if hasattr(x, "data_ptr") and hasattr(x, "element_size"):                      # torch
        _refuse_odd(x)
        dtype, size = _dtype(str(x.dtype).removeprefix("torch.")), x.element_size()
        strides = tuple(n * size for n in x.stride())
        return _view(x, x.data_ptr(), tuple(x.shape), strides, dtype, x.device.index if x.is_cuda else None)
    if hasattr(x, "__dlpack__"):
        return _dlpack(x)
    return x


def _refuse_odd(x):
    """TypeError for a torch tensor that is more, or less, than numbers in memory at some strides."""
    if x.device.type not in ("cpu", "cuda"):
        raise TypeError(f"a tensor is on the device {x.device}, must be on cpu or cuda")
    if str(x.layout) != "torch.strided" or x.is_nested:
        raise TypeError(f"a tensor is {'nested' if x.is_nested else x.layout}, must be strided")
    if x.is_neg() or x.is_conj():
        raise TypeError("a tensor is a view that negates or conjugates; call resolve_neg() or resolve_conj() first")


def _dtype(name):
    try:
        return BFLOAT16 if name == "bfloat16" else np.dtype(name)
    except TypeError:
        raise TypeError(f"an array holds {name}, which kernels do not take") from None


def memory(shape, strides, itemsize):
    """Of an array's memory: how many bytes lie before its first number (strides may be negative), and how many there
    are."""
    if 0 in shape:
        return 0, 0
    steps = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
    before = -sum(step for step in steps if step < 0)
    return before, before + sum(step for step in steps if step > 0) + itemsize


def _view(owner, address, shape, strides, dtype, device):
    before, extent = memory(shape, strides, dtype.itemsize)
    buffer = (ctypes.c_char * extent).from_address(address - before)
    seen = np.ndarray.__new__(View, shape, dtype, buffer, before, strides)
    seen.owner, seen.device = owner, device
    return seen


def _dlpack(x):
    """Reads the capsule and leaves it unclaimed: it goes, with its hold on the memory, when `x` does."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    capsule = x.__dlpack__()
    t = _DLTensor.from_address(get_pointer(capsule, b"dltensor"))
    where = DEVICE_TYPES.get(t.device_type)
    if where is None or t.kind not in DLPACK_KINDS or t.lanes != 1:
        raise TypeError(f"an array of {type(x).__name__} lies on a device, or holds numbers, that kernels cannot use")
    name = DLPACK_KINDS[t.kind] + ("" if t.kind == 6 else str(t.bits))
    dtype, shape = _dtype(name), tuple(t.shape[:t.ndim])
    counts = t.strides[:t.ndim] if t.strides else np.empty(shape, np.int8).strides         # in elements; null: packed
    strides = tuple(n * dtype.itemsize for n in counts)
    return _view(x, t.data + t.byte_offset, shape, strides, dtype, t.device_id if where == "cuda" else None)


def owner(x):
    """The array that the caller knows."""
    return x.owner if isinstance(x, View) else x


def device(x):
    """The number of the GPU on which x lies, or None."""
    return x.device if isinstance(x, View) else None


def fresh(like, shape, dtype, make="empty"):
    """A new array (or, with make="zeros", one full of zeros), of the library and on the device of `like`: as a view."""
    own, name = owner(like), dtype_name(dtype)
    if isinstance(own, np.ndarray):
        return view(getattr(np, make)(shape, own.dtype if name == "bfloat16" else dtype))   # bfloat16 as the caller's
    if hasattr(own, "new_empty"):                                                # torch
        return view(getattr(own, f"new_{make}")(shape, dtype=getattr(sys.modules["torch"], name)))
    library = own.__array_namespace__()
    return view(getattr(library, make)(shape, dtype=getattr(library, name), device=own.device))
