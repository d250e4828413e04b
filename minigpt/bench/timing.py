"""Timing that survives a shared machine.

The variants of a comparison run in one process, in blocks of about 150 ms whose order rotates, so that a change of
clock or temperature meets all of them alike. Before each block the process sleeps for 30 ms: the worker threads of
the variant before (OpenMP's, OpenBLAS's) spin for a few milliseconds after a call, and would steal the core. A block
in which other processes, or the host (steal), used more than 25 ms + 6 % of CPU time is dropped. What is reported
is the median and the quartiles of the calls in clean blocks; with fewer than 3 clean blocks, of all, marked noisy.
"""

import math
import os
import time

import numpy as np

from ..ops.memory import aligned_empty

BLOCK, SETTLE = 0.15, 0.03  # seconds
MIN_BLOCKS = 3


def normal(rng, *shape, std=1.0):
    """Random numbers, in an aligned array."""
    x = aligned_empty(shape)
    rng.standard_normal(dtype=np.float32, out=x)
    x *= std
    return x


def _machine_cpu_seconds():
    """CPU time that anything used on this machine, steal included; None where there is no /proc/stat."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def watched(call):
    """Calls -> (what it returned, whether this process had the machine for itself meanwhile)."""
    machine, own, start = _machine_cpu_seconds(), time.process_time(), time.perf_counter()
    result = call()
    if machine is None:
        return result, True
    others = (_machine_cpu_seconds() - machine) - (time.process_time() - own)
    return result, others < 0.025 + 0.06 * (time.perf_counter() - start)


def _timed_block(call, count):
    """Calls `call` count times -> the seconds of each call, and whether the block was clean."""
    def block():
        seconds, last = [], time.perf_counter()
        for _ in range(count):
            call()
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
        return seconds

    return watched(block)


def summary(seconds, clean_blocks=MIN_BLOCKS):
    """What is kept of a variant: seconds a call, as median and quartiles."""
    q1, median, q3 = np.quantile(seconds, [0.25, 0.5, 0.75])
    return {
        "median": float(median),
        "q1": float(q1),
        "q3": float(q3),
        "calls": len(seconds),
        "clean_blocks": clean_blocks,
        "noisy": clean_blocks < MIN_BLOCKS,
    }


def compare(variants, seconds=1.5):
    """Times functions side by side: {name: function} -> {name: summary}.

    `seconds` is the time meant for all the variants together. A variant gets 3 blocks even if they take longer; where
    blocks were dirty, up to as much time again.
    """
    counts = {}
    for name, call in variants.items():
        took = math.inf
        for calls in range(8):  # until no longer faster: the first ones meet cold caches, unmapped pages, a small heap
            start = time.perf_counter()
            call()
            before, took = took, time.perf_counter() - start
            if calls >= 4 and took > 0.9 * before:
                break
        counts[name] = max(1, round(min(BLOCK, seconds) / took))
    clean, every = {name: [] for name in variants}, {name: [] for name in variants}
    order, start = list(variants), time.perf_counter()
    while True:
        for name in order:
            time.sleep(min(SETTLE, seconds))
            block, is_clean = _timed_block(variants[name], counts[name])
            every[name].append(block)
            if is_clean:
                clean[name].append(block)
        order = order[1:] + order[:1]
        elapsed, rounds = time.perf_counter() - start, len(every[order[0]])
        enough = min(map(len, clean.values())) >= MIN_BLOCKS
        if rounds >= MIN_BLOCKS and elapsed > (seconds if enough else 2 * seconds):
            break
    return {
        name: summary(np.concatenate(clean[name] if len(clean[name]) >= MIN_BLOCKS else every[name]), len(clean[name]))
        for name in variants
    }
