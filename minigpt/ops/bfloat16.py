"""bfloat16 in NumPy, which has none: the upper half of a float32, kept as two bytes with a name.

Arrays of dtype BFLOAT16 can be stored, sliced and handed to kernels, but not computed with; to_float32 first. (Those of
the package ml_dtypes can be, and lie in memory the same way.)
"""

import numpy as np

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])


def to_bfloat16(x):
    """float32 -> BFLOAT16, rounded to nearest, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16).view(BFLOAT16)


def to_float32(x):
    """Any float dtype -> float32, exactly where x is of 16 bits."""
    if x.dtype == BFLOAT16:
        return (np.ascontiguousarray(x).view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(x.shape)
    return x.astype(np.float32)


def as_dtype(x, dtype):
    """x in another float dtype, BFLOAT16 included; x itself where it is of that one."""
    if x.dtype == dtype:
        return x
    if dtype == BFLOAT16:
        return to_bfloat16(x)
    return (to_float32(x) if x.dtype == BFLOAT16 else x).astype(dtype)


def dtype_name(dtype) -> str:
    """float32, float16, bfloat16 ..."""
    return "bfloat16" if dtype == BFLOAT16 else np.dtype(dtype).name


def is_float(dtype) -> bool:
    return dtype.kind == "f" or dtype == BFLOAT16
