"""What the model of GPUs assumes: rates of chips, and everything else that is a number and not counted.

Rates are those of data sheets unless it says otherwise. ``ASSUMPTIONS`` has the rest, each with its source and the measurement that
would replace it; docs/kernels.md shows both tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Gpu:
    """One chip."""

    name: str
    capability: int
    cores: int
    """Streaming multiprocessors."""
    clock: float
    """Hz, boost."""
    int8: int
    """Multiply-adds per core and clock, dense."""
    half: int
    """The same of 16 bits with float32 sums: on consumer chips a quarter of int8, not half."""
    peak: float
    """Bytes per second from memory."""
    cache: float
    """Bytes per second from L2, by published microbenchmarks."""
    warps: int
    """Most resident warps of a core."""
    blocks: int
    """Most resident programs of a core."""
    shared: int
    """Bytes of shared memory of a core."""
    gigabytes: int
    """Of memory."""
    fp32: int = 32
    """Lanes of float32 arithmetic in a quarter of a core."""

    @property
    def memory(self) -> float:
        """Bytes per second that a long read sustains."""
        return self.peak * READ_SHARE


GPUS: Final = (
    Gpu("A100", 80, 108, 1.41e9, 2048, 1024, 2.039e12, 5.0e12, 64, 32, 164 << 10, 80, 16),
    Gpu("RTX 3090", 86, 82, 1.695e9, 1024, 256, 0.936e12, 2.2e12, 48, 16, 100 << 10, 24),
    Gpu("RTX 4090", 89, 128, 2.52e9, 1024, 256, 1.008e12, 5.0e12, 48, 24, 100 << 10, 24),
    Gpu("H100", 90, 132, 1.755e9, 4096, 2048, 3.35e12, 7.0e12, 64, 32, 228 << 10, 80),
    Gpu("H200", 90, 132, 1.755e9, 4096, 2048, 4.8e12, 7.0e12, 64, 32, 228 << 10, 141),
    Gpu("B200", 100, 148, 1.85e9, 8192, 4096, 8.0e12, 12.0e12, 64, 32, 228 << 10, 180),
)

READ_SHARE: Final = 0.89
"""Of the data sheet's bandwidth."""
TENSOR_SHARE: Final = 0.8
"""Of the data sheet's tensor core rate."""
LATENCY: Final = 0.7e-6
"""Seconds from a load's issue until its data arrive, with memory busy."""
CACHED_LATENCY: Final = 0.3e-6
"""The same from L2."""
NODE: Final = 1.0e-6
"""Seconds between two dependent kernels of a CUDA graph in which nothing is read."""
EARLY: Final = 0.4e-6
"""The same where the next kernel waits on the GPU already (programmatic dependent launch)."""
BARRIER: Final = 30
"""Clocks of a barrier of a program."""
ATTENTION_SHARE: Final = 0.6
"""Of the tensor cores' rate, by attention over a prompt."""
CLUSTER: Final = 2
"""Programs of a 16-bit product that share an operand's way from L2 on chips from Hopper on."""
DEPENDENT: Final = 4
"""Clocks per instruction of a warp alone, outside of the loop: each needs the one before."""
START: Final = 500
"""Clocks from the end of a program to the first instruction of the next in its place."""
ALONE: Final = 64
"""Bytes per clock that one core can read at most."""
CHAIN: Final = 2
"""Dependent accesses of a kernel before and after its loop, from L2."""
ASSUMPTIONS: Final = (
    ("READ_SHARE", READ_SHARE, "of the data sheet's bandwidth, 0.86 to 0.93 in published copies", "a read of 1 GiB (`run`: copy GB/s)"),
    ("TENSOR_SHARE", TENSOR_SHARE, "of the data sheet's rate: power limits lower the clock", "`run --only gemm`, TOPS at M = 8192"),
    ("LATENCY", LATENCY, "s, a load from busy memory (published: 0.5 to 0.8 us)", "`run --only gemv`: 4096 x 4096 against 28672 x 4096"),
    ("CACHED_LATENCY", CACHED_LATENCY, "s, a load from L2 (published: 200 to 270 clocks unloaded)", "`run --only cache`"),
    ("NODE", NODE, "s between dependent kernels of a graph", "a graph of empty kernels"),
    ("EARLY", EARLY, "s, the same with programmatic dependent launch (llama.cpp, pull request 22522: 0.35 ms less of a step with some 500 kernels)", "that graph, launched so"),
    ("BARRIER", BARRIER, "clocks per barrier", "`run --only gemv`, before and after"),
    ("ALONE", ALONE, "bytes per clock and core", "a read by few programs"),
    ("ATTENTION_SHARE", ATTENTION_SHARE, "of the tensor cores' rate: FlashAttention 2 and 3 report 0.5 to 0.75", "a profile of a prompt"),
    ("CLUSTER", CLUSTER, "programs of a cuBLAS product that share an operand, 128 x 256 tiles", "`run --only gemm`, us, bf16"),
    ("DEPENDENT", DEPENDENT, "clocks per instruction of a warp alone (published: 4 to 6), outside of the loop", "small matrices of `run --only gemv`"),
    ("START", START, "clocks until a program's place has the next one: chosen, the only one, to meet the published figures", "products of many short programs in a profiler"),
    ("CHAIN", CHAIN, "dependent accesses of a program before its loop, and as many after it, from L2", "small matrices of `run --only gemv`"),
)  # fmt: skip
"""Name, value, what and whence, and the measurement that corrects it."""
