"""What a result was measured on: the CPU, the versions, and the limits that the machine itself sets."""

import importlib.metadata
import platform

from ..ops.memory import aligned_empty
from .timing import compare

GB = 1e9
PACKAGES = ("numpy", "torch", "transformers", "llama_cpp_python")


def describe():
    """{"cpu", "family", "model", "isa", "compiler", "threading", "versions"}."""
    extension, info = _extension(), cpuinfo()
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "family": info.get("cpu family"),
        "model": info.get("model"),
        "isa": extension.isa,
        "compiler": extension.compiler,
        "threading": extension.threading,
        "versions": versions,
    }


def _extension():
    from ..ops.cpp_ops import _C

    return _C


def cpuinfo():
    """The first processor's entries in /proc/cpuinfo; nothing where there is none."""
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read().split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def limits(options):
    """The limits of this machine, in GFLOP/s and GB/s, by the loops in csrc/cpp/machine_limits.cpp."""
    rounds, big, small = (100, 4096, 4096) if options["tiny"] else (1 << 20, 64 << 20, 2 << 20)
    a, b, c = (aligned_empty((big,)) for _ in range(3))
    for array in (a, b, c):
        array.fill(1)
    cached = b[:small]  # 8 MB: more than the L2 of two cores, less than the L3
    extension, seconds = _extension(), min(0.4, options["seconds"])

    def rate(call, amount):
        return amount / compare({"": call}, seconds)[""]["median"] / GB

    extension.set_num_threads(1)
    one = rate(lambda: extension.limit_fma(rounds), extension.limit_fma(1) * rounds)
    extension.set_num_threads(options["threads"])
    return {
        "fma_1_thread": one,
        "fma": rate(lambda: extension.limit_fma(rounds), extension.limit_fma(1) * rounds),
        "read": rate(lambda: extension.limit_read(b), b.nbytes),
        "triad": rate(lambda: extension.limit_triad(a, b, c, 2, False), 3 * a.nbytes),
        "triad_streaming": rate(lambda: extension.limit_triad(a, b, c, 2, True), 3 * a.nbytes),
        "l3": rate(lambda: extension.limit_read(cached), cached.nbytes),
    }


def limit(limits, kind):
    """The limit that a row of kind "fma", "l3", "read" or "memory" is held against. Memory: the fastest of the ways to
    stream through it, since a kernel is free to choose among them."""
    if kind == "memory":
        return max(limits["read"], limits["triad"], limits["triad_streaming"])
    return limits[kind]

