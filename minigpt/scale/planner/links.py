"""What travels between GPUs, and how long it takes.

Bytes per GPU of a ring over n GPUs, for an array of S bytes (nccl-tests, PERFORMANCE.md): all-reduce 2 (n-1)/n S;
reduce-scatter, all-gather and all-to-all (n-1)/n S. A ring that leaves the node crosses it once for each GPU the node
has in it, so that many network cards work for it; in an all-to-all each GPU has its own card alone.
"""

from __future__ import annotations

from .hardware import Assumptions, Gpu


def ring_bytes(size: float, n: int, times: int = 1) -> float:
    """Bytes that each of n GPUs sends so that an array of `size` bytes is gathered or reduce-scattered (times=1), or
    reduced on all of them (times=2)."""
    return times * (n - 1) / n * size


def ring_speed(gpu: Gpu, assumptions: Assumptions, n: int, stride: int) -> float:
    """Bytes/s through each GPU of a ring of n that lie `stride` apart (1: neighbours in the node)."""
    in_node = max(1, assumptions.gpus_per_node // stride)
    speed = gpu.nvlink if n <= in_node else min(gpu.nvlink, in_node * gpu.network)
    return speed * assumptions.link_efficiency


def all_to_all_seconds(gpu: Gpu, assumptions: Assumptions, size: float, n: int, stride: int) -> float:
    """Each of n GPUs, `stride` apart, sends `size` bytes, evenly, to all of them."""
    in_node = min(n, max(1, assumptions.gpus_per_node // stride))
    slowest = max((in_node - 1) / n / gpu.nvlink, (n - in_node) / n / gpu.network)      # seconds for a byte of size
    return size * slowest / assumptions.link_efficiency
