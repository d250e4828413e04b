"""A compiled library's launchers as Python functions, with their signatures read from the source.

    extern "C" void add(const float* a, const float* b, float* c, int64_t n, cudaStream_t stream)

is called as library.add(a, b, c, len(a)), or by name: arrays for pointers, numbers for numbers, nothing for the
stream. Every argument is checked by name before anything runs, since a wrong pointer would end the process.
"""

import ctypes
import re
from dataclasses import dataclass

import numpy as np

from ..ops.bfloat16 import dtype_name
from .rewrite import NOT_CODE, closing

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
    returns: str = "void"

    @property
    def taken(self):
        """The parameters that Python gives: all but the stream."""
        return [p for p in self.parameters if p.kind != "cudaStream_t"]

    def __str__(self):
        return f"{self.name}({', '.join(p.name for p in self.taken)})"


EXTERN_C = re.compile(r'\bextern\s*"C"\s*(\{)?')
NO_SIGNATURE = re.compile(r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)|^[ \t]*#(?:\\\n|[^\n])*", re.MULTILINE)
FUNCTION = re.compile(r"(.*?)\b(\w+)\s*$", re.DOTALL)
PARAMETER = re.compile(r"(const\s+)?(.+?)\s*(const)?\s*(\*?)\s*(?:__restrict__\s*)?\b(\w+)$", re.DOTALL)


def signatures(text: str, path: str) -> tuple[dict[str, Signature], dict[str, str]]:
    """The functions that the file defines as `extern "C"`, by name; and, of those that Python cannot call, why not."""
    code = NOT_CODE.sub(lambda found: found[0] if found[0] == '"C"' else _blank(found), text)
    code, known, skipped = NO_SIGNATURE.sub(_blank, code), {}, {}
    for name, returns, parameters, place in _definitions(code):
        line = code.count("\n", 0, place) + 1
        try:
            if name.startswith("_"):
                raise TypeError("its name begins with an underscore, as names of C++ and Python itself do")
            words = [part.strip() for part in _split(parameters) if part.strip() not in ("", "void")]
            known[name] = Signature(name, tuple(map(_parameter, words)), line, _returns(returns))
        except TypeError as error:
            skipped[name] = f"{path}:{line}: {name}: {error}"
    return known, skipped


def _blank(found):
    """As many spaces: places and lines stay what they were."""
    return re.sub(r"[^\n]", " ", found[0])


def _definitions(code):
    """(name, the words before it, the words between its parentheses, its place) of every function defined in
    `extern "C" type name(...) {` or in a block `extern "C" { ... }`."""
    end = 0
    for found in EXTERN_C.finditer(code):
        if found.start() < end:                                   # inside of a function that was seen
            continue
        end, last = found.end(), closing(code, found.end() - 1) if found[1] else found.end() + 1
        while end < last and (mark := re.compile(r"[;({]").search(code, end, last if found[1] else len(code))):
            words = FUNCTION.fullmatch(code[end:mark.start()]) if mark[0] == "(" else None
            if words is None:                                     # a declaration, or a struct
                end = mark.end() if mark[0] == ";" else closing(code, mark.start()) + 1
                continue
            after = closing(code, mark.start())
            body = re.compile(r"\s*(?:noexcept\s*)?\{").match(code, after + 1)
            if body and not re.search(r"\b(?:__global__|__device__|static)\b", words[1]):
                yield words[2], words[1], code[mark.end():after], mark.start()
            end = closing(code, body.end() - 1) + 1 if body else after + 1


def _split(parameters):
    """At the commas that are not inside of brackets."""
    return re.split(r",(?![^()<>]*[)>])", parameters)


def _returns(words):
    kind = " ".join(word for word in words.split() if word not in ("inline", "__host__"))
    if kind in ("void", "cudaError_t") or kind in INTEGERS | FLOATS:
        return "int" if kind == "cudaError_t" else kind
    raise TypeError(f"it returns `{kind}`; Python understands void, cudaError_t, integers, float and double")


def wrappers(known: dict[str, Signature]) -> str:
    """C++ that calls each launcher so that a fault in it does not end the process: emulator_call_<name>."""
    lines = ["#include <cstddef>", "#include <cstdint>",
             'extern "C" void emulator_call(const char* name, void (*call)(void*), void* arguments);',
             "template <class F>", "void call(const char* name, F f) {",
             "  emulator_call(name, [](void* p) { (*static_cast<F*>(p))(); }, &f);", "}"]
    for name, signature in known.items():
        kinds = ["void*" if p.ctype is ctypes.c_void_p else p.kind for p in signature.parameters]
        typed, names = (", ".join(f"{kind}{f' _{i}'}" for i, kind in enumerate(kinds)),
                        ", ".join(f"_{i}" for i in range(len(kinds))))
        # weak: what an #if leaves out is not there
        lines.append(f'extern "C" __attribute__((weak)) {signature.returns} {name}({typed});')
        body = f'call("{name}", [&] {{ {name}({names}); }});'
        if signature.returns != "void":
            body = f'{signature.returns} r{{}}; call("{name}", [&] {{ r = {name}({names}); }}); return r;'
        lines.append(f'extern "C" {signature.returns} emulator_call_{name}({typed}) {{ {body} }}')
    return "\n".join(lines) + "\n"


def _parameter(text):
    match = PARAMETER.fullmatch(text)
    if match:
        before, kind, behind, star, name = match.groups()
        kind = " ".join(kind.split())
        known = ELEMENTS if star else {**INTEGERS, **FLOATS, "cudaStream_t": None}
        if kind in known:
            return Parameter(name, kind, bool(star), bool(before or behind))
    raise TypeError(f"the parameter `{' '.join(text.split())}` cannot come from Python; a launcher takes pointers to "
                    "numbers, integers, float, double and cudaStream_t")


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
