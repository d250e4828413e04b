"""CUDA C++ as a C++ compiler takes it: the few things in a kernel's text that no macro can say otherwise.

    kernel<T, 64><<<grid, block, smem, stream>>>(x, n);
        ::emulator::launch("kernel<T, 64>", [=](auto... argument) { kernel<T, 64>(argument...); },
                           grid, block, smem, stream)(x, n);

    extern __shared__ float tile[];
        float* const tile = static_cast<float*>(::emulator::dynamic_shared());

    __shared__ float tile[32][33];
        __shared__ float tile[32][33]; static_assert(sizeof(tile) <= ...); ::emulator::shared_array("tile", tile);

    __global__ void __launch_bounds__(256) kernel(float* x) {
        __global__ void __launch_bounds__(256) kernel(float* x) { ::emulator::launch_bounds(256);

All else is left as it stands, the ends of lines above all, so that errors and findings name the author's own lines.
"""

import os
import re
from pathlib import Path

NOT_CODE = re.compile(r"""//(?:\\\n|[^\n])* | /\*.*?\*/ | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])+'""",
                      re.DOTALL | re.VERBOSE)
ATTRIBUTE = r"(?:(?:__align__|alignas|__attribute__)\s*\((?:[^()]|\([^()]*\))*\)\s*)?"
DYNAMIC_SHARED = re.compile(rf"\bextern\s+{ATTRIBUTE}__shared__\s+{ATTRIBUTE}([^;=]+?)\s*\b(\w+)\s*\[\s*\]\s*;")
STATIC_SHARED = re.compile(r"\b__shared__\b([^;{}=]*);")
LOCAL_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)
INNERMOST = r"<[^<>]*>|\[[^\[\]]*\]|\([^()]*\)"
KERNEL = re.compile(r"\b__global__\b[^;{}()=]*?\b(?!__)(\w+)\s*(?:<[^;{}()]*>\s*)?\(")
NO_NAME = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*|\b__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)", re.MULTILINE)
A_CALL_AFTER = re.compile(r"(?:^|[;{}(,)=?!|+-]|(?<!:):|\b(?:return|else|do))\s*$")
A_DECLARATION_AFTER = re.compile(r"[\w*&>]\s*$")
LAUNCH_BOUNDS = re.compile(r"\b__launch_bounds__\s*\(")
BRACKET = re.compile(r"[(){}\[\]]")
CLOSING = {"(": ")", "[": "]", "{": "}"}


class CompileError(ValueError):
    """The compiler's words, with the lines of the file as its author wrote it."""


class SyntaxProblem(CompileError):
    """A launch that cannot be read; the compiler would not understand it either."""


def rewrite(text: str, path: str) -> str:
    """The text of the file `path`, ready for a C++ compiler."""
    code = NOT_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)     # same places, no comments or strings
    edits = [*_launches(text, code, path)]
    for found in DYNAMIC_SHARED.finditer(code):
        kind, name = (" ".join(part.split()) for part in found.groups())
        edits.append((*found.span(),
                      f"{kind}* const {name} = static_cast<{kind}*>(::emulator::dynamic_shared());"
                      + "\n" * found[0].count("\n")))
    _refuse_calls(code, path)
    edits += _shared_arrays(code)
    edits += _launch_bounds(code)
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    name = re.sub(r'(["\\])', r"\\\1", path)
    return f'#line 1 "{name}"\n{text}'


def _refuse_calls(code, path):
    """A kernel is launched, never called: C++ would call it, as one thread of no block. A name that also stands for
    something else in this file is left alone."""
    code = NO_NAME.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), code)
    kernels = {found.start(1): found[1] for found in KERNEL.finditer(code)}
    for name in set(kernels.values()):
        places = [found.start() for found in re.finditer(rf"\b{name}\s*(?:<[^;{{}}()<>]*>\s*)?\(", code)]
        calls = [place for place in places if A_CALL_AFTER.search(code, 0, place)]
        others = [place for place in places if place not in (*kernels, *calls)
                  and A_DECLARATION_AFTER.search(code, 0, place)]
        if calls and not others and not re.search(rf"\b{name}\s*=(?!=)", code):
            raise CompileError(f"{path}:{code.count(chr(10), 0, calls[0]) + 1}: {name} is a __global__ function and "
                               f"must be launched: {name}<<<grid, block>>>(...)")


def _shared_arrays(code):
    """Behind each declaration of shared arrays within a function: their names, for whoever watches them."""
    for found in STATIC_SHARED.finditer(code):
        before = code[:found.start()]
        if re.search(r"\bextern\b[^;{}]*$", before) or before.count("{") == before.count("}"):
            continue
        # of `float a[32], b` what follows brackets and commas outside of <> and () is a name
        declared = re.sub(rf"^\s*{ATTRIBUTE}", "", found[1])
        while re.search(INNERMOST, declared):
            declared = re.sub(INNERMOST, " ", declared)
        names = [re.search(r"(\w+)\s*$", part)[1] for part in declared.split(",")]
        yield found.end(), found.end(), "".join(
            f' static_assert(sizeof({name}) <= 48 * 1024, "{name}: the __shared__ arrays of a block have at most 48 '
            'KiB (49152 bytes); more has to be dynamic: extern __shared__");'
            f' ::emulator::shared_array("{name}", {name});' for name in names)


def _launch_bounds(code):
    """At the begin of each kernel that promises blocks of so many threads: the promise."""
    for found in LAUNCH_BOUNDS.finditer(code):
        after = closing(code, found.end() - 1)
        opening = code.find("(", after)
        if opening < 0 or not (body := re.compile(r"\s*\{").match(code, closing(code, opening) + 1)):
            continue                                                            # a declaration
        threads = re.split(r",(?![^()<>]*[)>])", code[found.end():after])[0]
        yield body.end(), body.end(), f" ::emulator::launch_bounds({' '.join(threads.split())});"


def closing(code, opening):
    """The place of the bracket that closes the one at `opening`; the end, if there is none."""
    depth = 0
    for found in BRACKET.finditer(code, opening):
        depth += 1 if found[0] in CLOSING else -1
        if depth == 0:
            return found.start()
    return len(code)


def _launches(text, code, path):
    """Two edits for each launch: all before the configuration, and the >>> behind it."""
    for found in re.finditer("<<<", code):
        where = f"{path}:{text.count(chr(10), 0, found.start()) + 1}"
        begin = _kernel_begins(code, found.start(), where)
        close = _configuration_ends(code, found.end(), where)
        kernel = code[begin:found.start()].rstrip()
        name = " ".join(kernel.split())
        yield begin, found.end(), (f'::emulator::launch("{name}", [=](auto... argument) {{ {kernel}(argument...); }}, '
                                   + "\n" * (code.count("\n", begin, found.end()) - kernel.count("\n")))
        yield close, close + 3, ")"


def _kernel_begins(code, end, where):
    """Walks back from <<< over `space::name<arguments>`."""
    i = len(code[:end].rstrip())
    if code[i - 1:i] == ">":                             # template arguments: back to the < that opens them
        depth = 0
        while i:
            i -= 1
            depth += (code[i] == ">") - (code[i] == "<")
            if depth == 0:
                break
    name = re.search(r"[\w:]+\s*$", code[:i])
    if not name or code[i - 1:i] == ":":
        raise SyntaxProblem(f"{where}: no kernel's name before <<<")
    return name.start()


def _configuration_ends(code, start, where):
    """The place of the >>> that closes the launch's configuration."""
    depth, i = 0, start
    while i < len(code) and code[i] != ";":
        if code.startswith(">>>", i) and depth == 0:
            return i
        depth += (code[i] in CLOSING) - (code[i] in CLOSING.values())
        i += 1
    raise SyntaxProblem(f"{where}: <<< without >>> before the next semicolon")


def read(path) -> str:
    """The text of a source file. ValueError, naming it, where it is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (at byte {error.start})") from None


def with_local_includes(path: str, folders=()) -> dict[str, str]:
    """{path: rewritten text} of a file and of every file that it reaches by #include "...": beside the file that asks,
    or in `folders`."""
    files, waiting = {}, [os.path.abspath(path)]
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        text = read(path)
        files[path] = rewrite(text, path)
        for name in LOCAL_INCLUDE.findall(text):
            places = (os.path.normpath(os.path.join(folder, name)) for folder in (os.path.dirname(path), *folders))
            waiting += [place for place in places if os.path.isfile(place)][:1]
    return files
