"""What a plan takes for granted: the GPUs, the links between them, and how much of both real work reaches.

Every number that is an assumption stands in this file under a name, and the report prints it. Peaks, bandwidths and
power are the makers' figures, memory is what CUDA sees; bytes and FLOPs per second are decimal.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU of a node."""

    peak: float         # dense matrix products in bf16 or fp16, FLOP/s; in fp32 (as TF32) half of it
    reached: float      # of that peak, by a matrix product of the best shape: S. Bekman, Machine Learning Engineering,
    #                     measured 271.2 TFLOP/s on an A100 and 794.5 on an H100; taken over for the others
    memory: float       # bytes
    bandwidth: float    # of that memory, bytes/s
    nvlink: float       # to the other GPUs of its node, bytes/s one way
    network: float      # to other nodes, bytes/s one way: one network card for each GPU
    watts: float        # thermal design power


GIB = 2**30             # cards sold with 80, 80, 141 and 180 GB have so many of these:
GPUS = {
    "a100": Gpu(312e12, 0.869, 80 * GIB, 2.04e12, 300e9, 25e9, 400),           # SXM, 80 GB; 200 Gbit/s InfiniBand
    "h100": Gpu(989e12, 0.803, 80 * GIB, 3.35e12, 450e9, 50e9, 700),           # SXM; 400 Gbit/s
    "h200": Gpu(989e12, 0.803, 139 * GIB, 4.80e12, 450e9, 50e9, 700),
    "b200": Gpu(2250e12, 0.803, 178 * GIB, 8.0e12, 900e9, 50e9, 1000),
}


@dataclass(frozen=True)
class Precision:
    """Bytes that one number takes. All optimisers are Adam: two moments in fp32, and, where the weights are 16-bit,
    their fp32 master copy."""

    weight: int
    gradient: int
    optimizer: int
    activation: int
    speed: float = 1.0  # of the GPU's peak


PRECISIONS = {
    "fp32": Precision(4, 4, 8, 4, 0.5),         # TF32 tensor cores
    "bf16": Precision(2, 4, 12, 2),             # gradients are added up in fp32, as Megatron-LM and Llama 3 do
    "fp16": Precision(2, 4, 12, 2),
}
ZERO_PAPER = Precision(2, 2, 12, 2)             # ZeRO's example: 16 bytes a parameter, gradients in fp16


@dataclass(frozen=True)
class Assumptions:
    """Shares of the peaks that well-made programs reach, and what else has to be assumed. `shapes` was chosen so that
    Megatron-LM's ten published runs are met on average; `minigpt plan --published` shows how far plans are from each of
    them, and from other runs that took place."""

    shapes: float = 0.83                # of Gpu.reached, by the matrix products of a transformer's shapes
    memory_efficiency: float = 0.80     # of the memory's bandwidth, in everything else; a guess
    link_efficiency: float = 0.80       # of NVLink's and the network's speed, in collectives; a guess
    gpus_per_node: int = 8              # joined by NVLink, and a unit for tensor parallelism
    reserved_bytes: float = 5e9         # of each GPU's memory: CUDA's context, NCCL's buffers, fragmentation; a guess
    server_factor: float = 1.45         # power of a server with CPUs, fans and network for each GPU's watt; a guess, as
    #                                     the makers' maximum is 1.8 (DGX H100: 10.2 kW)
    pue: float = 1.10                   # power of the data centre for each watt of its servers (arXiv:2302.13971)
    fused_attention: bool = True        # scores live in registers; else they go through memory
    dropout: bool = False               # its masks are kept for the backward pass; this project's GPT has none
    sequence_parallel: bool = True      # the tensor-parallel GPUs share what lies between the matrix products
    overlap: bool = True                # gradients travel while the last micro-batch's backward pass still runs
