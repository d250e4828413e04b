"""From a .cu file to a shared library: rewritten, compiled by g++ or clang++ with the emulator's runtime, and cached.

Two builds of one source. The fast one only runs. In the checked one the compiler reports every load and store to the
runtime (-fsanitize=thread makes it insert the calls; the functions called are the emulator's own, not the sanitizer's).
The runtime is compiled once and linked to every library, so that each has a machine of its own.
"""

import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from ..files.atomic import atomic_write
from . import errors, flops, launchers
from .rewrite import NOT_CODE, CompileError, read, with_local_includes

PACKAGE = Path(__file__).parent.parent
FLAGS = ("-std=c++17", "-g1", "-fPIC", "-fno-threadsafe-statics", "-ffp-contract=off", "-fno-strict-aliasing",
         "-fno-optimize-sibling-calls", "-Wno-unknown-pragmas", "-Wno-psabi",
         *(("-fstack-clash-protection",) if sys.platform == "linux" else ()))
CHECKED = ("-O1", "-fsanitize=thread", "-fsanitize=bounds", "-DEMULATOR_CHECKED",
           *(("-mno-red-zone",) if flops.COUNTED else ()))
# What only one compiler understands. Static variables of templates must not be shared between libraries, and in the
# checked build vectors are loaded whole and loops not cut short by what the compiler concludes from an array's size.
GCC = ("-fno-gnu-unique", "-fno-semantic-interposition")
GCC_CHECKED = ("-fno-tree-sra", "-fno-aggressive-loop-optimizations", "--param=tsan-instrument-func-entry-exit=0",
               "-finline-small-functions", "--param=early-inlining-insns=5000")   # what is passed by value is not seen
CLANG_CHECKED = ("-mllvm", "-tsan-instrument-func-entry-exit=0", "-mllvm", "-tsan-instrument-read-before-write=1",
                 *(("-ffp-exception-behavior=maytrap",) if flops.COUNTED else ()))    # no arithmetic before its if
# What is declared and nowhere defined is an error of the linker, in words, not of whoever loads the library.
# Calls that would end the process, and the place of an exception, go to host.cpp first.
WRAPPED = tuple(f"-Wl,--wrap={name}" for name in ("exit", "_exit", "_Exit", "quick_exit", "__cxa_throw",
                                                  "__cxa_allocate_exception"))
LINKED = ("-Wl,-z,defs", *WRAPPED, "-ldl", "-lpthread") if sys.platform == "linux" else ()
SECONDS = 300                             # for a compiler: ten times what the largest of our kernels takes
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"\n]+)"|<(/[^>\n]+)>)', re.MULTILINE)
OF_C = re.compile(r"(.*-)?(cc|gcc|clang)(-[\d.]+)?")
KEPT = 300                                # libraries in the cache, about 1 MB each; the oldest go first


def sources() -> Path:
    """The folder csrc: beside the package in a checkout, inside it where it was installed."""
    inside = PACKAGE / "csrc"
    return inside if inside.is_dir() else PACKAGE.parent / "csrc"


@cache
def compiler() -> str:
    """The C++ compiler: $CXX, or without it the first on the path. ImportError where there is none."""
    if chosen := os.environ.get("CXX"):
        if OF_C.fullmatch(os.path.basename(chosen)):
            raise ImportError(f"$CXX is {chosen!r}, a compiler of C: the emulator needs one of C++ (g++ or clang++)")
        if not (found := shutil.which(chosen)):
            raise ImportError(f"$CXX is {chosen!r}, and there is no such program: it must name a C++ compiler "
                              "alone, without options")
        return found
    for name in ("g++", "clang++"):
        if found := shutil.which(name):
            return found
    raise ImportError("the emulator needs a C++ compiler (g++ or clang++), none was found")


def ready():
    """ImportError, saying why in one line, where nothing can be emulated."""
    compiler()
    if os.name != "posix" or not (sources() / "emulator" / "cuda_on_cpu.h").exists():
        raise ImportError("the emulator's sources (csrc/emulator) are not here" if os.name == "posix" else
                          "the emulator runs on Linux and macOS only")


@cache
def _compiler_version():
    try:
        return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ImportError(f"the C++ compiler {compiler()} does not run ({error})") from None


def _is_clang():
    return "clang" in _compiler_version()


def _flags(checked):
    """Options that say how to compile: those of both compilers, and those of the one at hand."""
    own = CLANG_CHECKED * checked if _is_clang() else GCC + GCC_CHECKED * checked
    return [*FLAGS, *own, *(CHECKED if checked else ("-O2",))]


def cache_folder() -> Path:
    """Where compiled libraries are kept: $XDG_CACHE_HOME/minigpt/emulator, or a temporary folder where the home is not
    ours to write to."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for folder in (home / "minigpt" / "emulator", Path(tempfile.gettempdir()) / f"minigpt-emulator-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    raise ImportError("the emulator needs a folder to keep what it compiles; set XDG_CACHE_HOME to one")


def build(path, checked: bool, include=()) -> Path:
    """Compiles `path`, unless that was done before; returns the library. CompileError if it does not compile.
    `include`: folders in which #include "..." looks besides the file's own."""
    path = os.path.abspath(path)
    include = [os.path.abspath(folder) for folder in include]
    _look_at_includes(path, include)
    files = with_local_includes(path, include)
    options = [*_flags(checked), "-DMINIGPT_EMULATED",
               *(f"-I{folder}" for folder in (*include, sources() / "emulator", sources() / "emulator" / "include")),
               "-include", "cuda_on_cpu.h"]
    calls = launchers.wrappers(launchers.signatures(read(path), path)[0])
    library = cache_folder() / f"{_key(path, *map(str, options), *files, *files.values(), calls)}.so"
    if _intact(library):
        os.utime(library)
        return library
    objects = runtime()
    with tempfile.TemporaryDirectory() as folder:
        # the rewritten files lie in a tree like that of the originals, so that #include "../x.cuh" finds them
        for original, text in files.items():
            copy = Path(folder, original.lstrip("/"))
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text, encoding="utf-8")
        made, assembly, counted = Path(folder, "kernel.o"), Path(folder, "kernel.s"), checked and flops.COUNTED
        try:
            _compile("-x", "c++", "-S" if counted else "-c", f"{folder}{path}",
                     *(f"-I{folder}{original}" for original in include), *options, f"-fdebug-prefix-map={folder}=",
                     "-o", assembly if counted else made)
        except CompileError as error:
            raise CompileError(errors.readable(str(error), files)) from None
        if counted:
            assembly.write_text(flops.counting(assembly.read_text(encoding="utf-8")), encoding="utf-8")
            _compile("-c", assembly, "-o", made)
        Path(folder, "calls.cpp").write_text(calls, encoding="utf-8")
        _store(library, "-shared", made, Path(folder, "calls.cpp"), *FLAGS, *objects, "-Wl,-Bsymbolic", *LINKED)
    return library


def checked_arguments(path, checked, include):
    """(path, include) of compile(), each a str or several, when they are what they must be."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"compile: path is {path!r}, must be the name of a .cu file")
    if isinstance(include, (str, os.PathLike)) or not isinstance(include, (list, tuple)):
        raise TypeError(f"compile: include is {include!r}, must be a list of folders")
    if not isinstance(checked, bool):
        raise TypeError(f"compile: checked is {checked!r}, must be True or False")
    path, include = os.fspath(path), [os.fspath(folder) for folder in include]
    for folder in include:
        if not os.path.isdir(folder):
            raise ValueError(f"compile: include has {folder!r}, which is no folder")
    if not os.path.lexists(path):
        raise FileNotFoundError(2, "no such file", path)
    if not os.path.isfile(path):
        raise ValueError(f"compile: {path!r} is a folder or a device, must be a file")
    if re.search(r"[\0-\x1f]", os.path.abspath(path)):
        raise ValueError(f"compile: {path!r} has a line break in its name, which no error message could show")
    return path, tuple(include)


def _look_at_includes(path, include):
    """Refuses an #include of what is no file, as a device that never ends, or of a file in somebody else's folder."""
    folders, waiting, seen = (os.path.dirname(path), *include, str(sources())), [path], set()
    while waiting:
        file = waiting.pop()
        seen.add(file)
        text = read(file)
        code = NOT_CODE.sub(lambda found: found[0] if found[0][0] == '"' else re.sub(r"[^\n]", " ", found[0]), text)
        for found in INCLUDE.finditer(code):
            name = found[1] or found[2]
            places = (os.path.normpath(os.path.join(f, name)) for f in (os.path.dirname(file), *include))
            place = next(filter(os.path.exists, places), None)
            if place is None or place in seen:
                continue
            where = f"{file}:{code.count(chr(10), 0, found.start()) + 1}: #include of {name}"
            if not os.path.isfile(place):
                raise CompileError(f"{where}, which is no file")
            if not any(os.path.commonpath([f, place]) == f for f in folders):
                raise CompileError(f"{where}, which lies neither beside the .cu file nor in a folder below; "
                                   f"name its folder: compile(..., include=[{os.path.dirname(place)!r}])")
            waiting.append(place)


def _key(*parts):
    """Names a library by all that decides what is in it."""
    headers = [p.read_text(encoding="utf-8") for p in sorted((sources() / "emulator").rglob("*.[hc]*"))]
    words = [platform.machine(), _compiler_version(), *parts, *headers]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


def runtime():
    """The objects of csrc/emulator/*.cpp, compiled where they are not in the cache yet."""
    objects = []
    for source in sorted((sources() / "emulator").glob("*.cpp")):
        made = cache_folder() / f"{_key(source.name)}.o"
        if not _intact(made):
            _store(made, "-c", source, *_flags(checked=False), f"-I{source.parent}")
        objects.append(made)
    return objects


def _store(target, *arguments):
    """Compiles into the cache, in one step for whoever looks; then drops what is oldest there."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made")
        _compile(*arguments, "-o", made)
        if not made.exists():
            raise CompileError(f"{compiler()} says nothing and makes nothing: it is no C++ compiler")
        data = made.read_bytes()
        for path, content in ((target, data), (checksum(target), hashlib.sha256(data).hexdigest().encode())):
            with atomic_write(path) as file:
                file.write(content)
    for old in sorted(target.parent.glob("*.so"), key=lambda p: p.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
        checksum(old).unlink(missing_ok=True)


def checksum(path):
    return path.with_name(f"{path.name}.sha256")


def _intact(path):
    """Whether a file in the cache is there, and is what was put there: a damaged library would end the process."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest().encode() == checksum(path).read_bytes()
    except OSError:
        return False


def _compile(*arguments):
    """Runs the compiler; whatever ends the wait ends the compiler too, with the processes that it started."""
    process = subprocess.Popen([compiler(), *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, errors="replace", start_new_session=True)
    try:
        _, words = process.communicate(timeout=SECONDS)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise CompileError(f"{compiler()} was stopped: it was not done after {SECONDS} seconds") from None
        raise
    if process.returncode:
        raise CompileError(words.strip())
