"""A compiled library's launchers as Python functions, with their signatures read from the source.

    extern "C" void add(const float* a, const float* b, float* c, int64_t n, cudaStream_t stream)

is called as library.add(a, b, c, len(a)): arrays where it has pointers, numbers where it has numbers, nothing for the
stream. Every argument is checked by name before anything runs, since a wrong pointer would end the process.
"""

import ctypes
import re
from dataclasses import dataclass

import numpy as np

from ..ops.bfloat16 import dtype_name
from .rewrite import NOT_CODE

INTEGERS = {"int": ctypes.c_int32, "unsigned": ctypes.c_uint32, "unsigned int": ctypes.c_uint32,
            "long long": ctypes.c_int64, "long": ctypes.c_long, "size_t": ctypes.c_size_t, "bool": ctypes.c_bool,
            **{f"{sign}int{bits}_t": getattr(ctypes, f"c_{sign}int{bits}")
               for sign in ("", "u") for bits in (8, 16, 32, 64)}}
FLOATS = {"float": ctypes.c_float, "double": ctypes.c_double}
# What an array behind a pointer may hold: the names of NumPy's dtypes. void* takes any.
ELEMENTS = {**{name: (np.dtype(kind).name,) for name, kind in (INTEGERS | FLOATS).items()}, "char": ("int8",),
            "unsigned char": ("uint8",), "half": ("float16",), "__half": ("float16",), "bfloat16": ("bfloat16",),
            "__nv_bfloat16": ("bfloat16",), "void": None}

@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str                                      # the C++ type without const, pointer or name
    pointer: bool
    const: bool

    @property
    def ctype(self):
        return ctypes.c_void_p if self.pointer or self.kind == "cudaStream_t" else (INTEGERS | FLOATS)[self.kind]


@dataclass(frozen=True)
class Signature:
    name: str
    parameters: tuple[Parameter, ...]
    line: int

    def __str__(self):
        return f"{self.name}({', '.join(p.name for p in self.parameters if p.kind != 'cudaStream_t')})"


LAUNCHER = re.compile(r'\bextern\s*"C"\s*void\s+(\w+)\s*\(([^)]*)\)\s*\{')
PARAMETER = re.compile(r"(const\s+)?(.+?)\s*(const)?\s*(\*?)\s*(?:__restrict__\s*)?\b(\w+)$", re.DOTALL)


def signatures(text: str, path: str) -> dict[str, Signature]:
    """The functions that the file defines as `extern "C" void name(...)`, by name."""
    code = NOT_CODE.sub(lambda found: found[0] if found[0] == '"C"' else re.sub(r"[^\n]", " ", found[0]), text)
    found = {}
    for launcher in LAUNCHER.finditer(code):
        name, line = launcher[1], code.count("\n", 0, launcher.start()) + 1
        words = [part.strip() for part in launcher[2].split(",") if part.strip() not in ("", "void")]
        found[name] = Signature(name, tuple(_parameter(part, f"{path}:{line}: {name}") for part in words), line)
    return found


def _parameter(text, where):
    match = PARAMETER.fullmatch(text)
    if match:
        before, kind, behind, star, name = match.groups()
        kind = " ".join(kind.split())
        known = ELEMENTS if star else {**INTEGERS, **FLOATS, "cudaStream_t": None}
        if kind in known:
            return Parameter(name, kind, bool(star), bool(before or behind))
    raise TypeError(f"{where}: the parameter `{text}` cannot come from Python; a launcher takes pointers to numbers, "
                    "integers, float, double and cudaStream_t")


def argument(function: str, parameter: Parameter, value, contiguous=True):
    """`value` as ctypes passes it for `parameter`. TypeError or ValueError, naming it, if it does not fit."""
    where = f"{function}: {parameter.name}"
    if parameter.kind == "cudaStream_t":
        return value
    if not parameter.pointer:
        return _number(where, parameter, value)
    if value is None:
        return None
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{where} is {type(value).__name__}, must be an array: {parameter.kind}* in the source")
    wanted, got = ELEMENTS[parameter.kind], dtype_name(value.dtype)
    if wanted and got not in wanted:
        raise TypeError(f"{where} holds {got}, must hold {wanted[0]}: {parameter.kind}* in the source")
    if not value.dtype.isnative:
        raise TypeError(f"{where} has the bytes of its numbers in the other order ({value.dtype}), must be {got}")
    if contiguous and not value.flags.c_contiguous:
        raise ValueError(f"{where} is not contiguous (strides {value.strides}), must be: a kernel sees an address")
    if not parameter.const and not value.flags.writeable:
        raise ValueError(f"{where} is read-only, must be writable: {parameter.kind}*, not const, in the source")
    return value.ctypes.data


def _number(where, parameter, value):
    kinds = (int, np.integer) if parameter.kind in INTEGERS else (int, float, np.integer, np.floating)
    if not isinstance(value, (*kinds, np.bool_)):
        raise TypeError(f"{where} is {value!r}, must be {parameter.kind}")
    converted = parameter.ctype(value)
    if parameter.kind in INTEGERS and converted.value != value:
        raise ValueError(f"{where} is {value}, which does not fit {parameter.kind}")
    return converted
