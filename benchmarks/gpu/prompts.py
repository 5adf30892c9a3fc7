"""Predicts a prompt's linears from compiled code, against 16 bits: a prediction, nothing runs on a GPU.

    python -m benchmarks.gpu.prompts [--capability 90] [--tokens 2048]

For each linear of Llama-3.1-8B as the converter leaves it by default: the GEMM that ``gemm`` would launch is compiled for the GPU, the
loop over K is read from SASS, and its time is the largest of what tensor cores, instruction issue, the L2 cache and memory
take ("overlapped"), or the sum of tensor cores and issue where no other program hides one behind the other ("serial"). The
quantizer is bound by memory or by its instructions. 16 bits are the same model of a 128 x 256 tile without other instructions in its loop.

Assumptions, to be corrected by a measured run: the rates below; tensor cores sustain 80 % of their peak; a wave of programs that is
not full costs as much as a full one; 1 us per launch.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from dataclasses import dataclass

import torch
from tabulate import tabulate

from int8conv.kernels.gpu import linear
from int8conv.kernels.gpu.linear import Operand
from int8conv.kernels.gpu.prologue import Prologue
from int8conv.kernels.weight import MixedWeight
from tests.kernels.gpu.compiling import Recorded, compile_for, recording

from .layers import SHAPES


@dataclass(frozen=True)
class Gpu:
    """Rates, from data sheets; the cache's from published microbenchmarks."""

    name: str
    cores: int
    clock: float
    """Hz."""
    int8: int
    """Multiply-adds per core and clock; 16 bits have half."""
    memory: float
    cache: float
    """Bytes per second from L2."""


GPUS = {
    80: Gpu("A100", 108, 1.41e9, 2048, 1.9e12, 5.0e12),
    89: Gpu("RTX 4090", 128, 2.52e9, 1024, 0.95e12, 5.0e12),
    90: Gpu("H100", 132, 1.75e9, 4096, 3.0e12, 7.0e12),
}
SUSTAINED = 0.8
LAUNCH = 1e-6


def loop_of(sass: str) -> Counter[str]:
    """Instructions of the largest loop with int8 tensor core instructions."""
    lines, labels = sass.splitlines(), {}
    best: Counter[str] = Counter()
    for i, line in enumerate(lines):
        if label := re.match(r"^\s*(\.L_x_\d+):", line):
            labels[label[1]] = i
        jump = re.search(r"BRA\S*\s.*`\((\.L_x_\d+)\)", line)
        if jump and jump[1] in labels:
            body = "\n".join(lines[labels[jump[1]] : i + 1])
            found = Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", body, re.M))  # fmt: skip
            if any(op.startswith(("IMMA", "IGMMA", "UTCIMMA")) for op in found) and found.total() > best.total():  # fmt: skip
                best = found
    return best


def product_seconds(gpu: Gpu, launched: Recorded, capability: int, shape: tuple[int, int, int]) -> tuple[float, float, Counter[str]]:  # fmt: skip
    """Overlapped and serial seconds of a GEMM, and its loop."""
    tokens, out, channels = shape
    meta = launched.meta
    m, n, k = meta["BLOCK_M"], meta["BLOCK_N"], meta["BLOCK_K"]
    loop = loop_of(compile_for(launched, capability).sass)
    tiles = -(-tokens // m) * -(-out // n)
    rounds = -(-tiles // gpu.cores) * -(-channels // k)
    tensor = rounds * m * n * k / (gpu.int8 * SUSTAINED) / gpu.clock
    issue = rounds * loop.total() * meta["num_warps"] / 4 / gpu.clock
    cache = tokens * out * channels * (1 / m + 1 / n) / gpu.cache
    memory = (out * channels + tokens * (channels + 2 * out)) / gpu.memory
    return max(tensor, issue, cache, memory), max(tensor + issue, cache, memory), loop


def half_seconds(gpu: Gpu, shape: tuple[int, int, int]) -> float:
    tokens, out, channels = shape
    rounds = -(-(-(-tokens // 128) * -(-out // 256)) // gpu.cores)
    tensor = rounds * 128 * 256 * channels / (gpu.int8 / 2 * SUSTAINED) / gpu.clock
    # thread block clusters of two share an operand
    cache = 2 * tokens * out * channels * (1 / 256 + 1 / 256) / gpu.cache
    memory = 2 * (out * channels + tokens * (channels + out)) / gpu.memory
    return max(tensor, cache, memory) + LAUNCH


def quantizer_seconds(gpu: Gpu, launched: Recorded, capability: int, tokens: int, channels: int) -> tuple[float, float]:  # fmt: skip
    """Seconds, and instructions per element (of the whole kernel, as if it ran once per block of channels)."""
    block, warps = launched.meta["BLOCK"], launched.meta["num_warps"]
    each = sum(compile_for(launched, capability).ops.values()) * warps * 32 / block
    issue = tokens * channels * each / 32 / (4 * gpu.cores * gpu.clock)
    reads = 5 if launched.meta["ACTIVATION"] != "none" else 3
    return max(issue, tokens * channels * reads / gpu.memory) + LAUNCH, each


def launches_of(capability: int, tokens: int) -> list[tuple[str, tuple[int, int, int], Recorded, Recorded]]:  # fmt: skip
    """For each linear: its shape, quantizer and GEMM."""

    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    found = []
    for name, (out, channels) in SHAPES["Llama-3.1-8B"].items():
        heavy = name == "down"
        weight = MixedWeight(
            meta(out, channels, dtype=torch.int8), meta(out, dtype=torch.float32), meta(48, dtype=torch.int32),
            meta(out, 48), activation_bits=16 if heavy else 8,
        )  # fmt: skip
        x = meta(tokens, channels)
        prologue = Prologue(activation="silu", times=x) if heavy else Prologue()
        if name in ("qkv", "gate_up"):
            prologue = Prologue(norm="rms", weight=meta(channels), eps=1e-5)
        residual = meta(tokens, out) if name in ("o", "down") else None
        with recording(capability) as launches:
            linear.linear(Operand(x, prologue), weight, residual=residual, mode="w8a8")
        found.append((name, (tokens, out, channels), *launches))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, choices=sorted(GPUS), default=90)
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    gpu, rows = GPUS[options.capability], []
    sums = [0.0, 0.0, 0.0]
    for name, shape, quantizer, product in launches_of(options.capability, options.tokens):
        low, high, loop = product_seconds(gpu, product, options.capability, shape)
        extra, each = quantizer_seconds(gpu, quantizer, options.capability, options.tokens, shape[2])  # fmt: skip
        times = (low + LAUNCH + extra, high + LAUNCH + extra, half_seconds(gpu, shape))
        sums = [a + b for a, b in zip(sums, times, strict=True)]
        block = product.meta["SCALE_BLOCK"]
        rows.append([name, block, loop.total(), f"{each:.0f}", f"{1e6 * extra:.0f}", *(f"{1e6 * t:.0f}" for t in times), f"{times[2] / times[1]:.2f} to {times[2] / times[0]:.2f}"])  # fmt: skip
    rows.append(["all", "", "", "", "", *(f"{1e6 * t:.0f}" for t in sums), f"{sums[2] / sums[1]:.2f} to {sums[2] / sums[0]:.2f}"])  # fmt: skip
    headers = ["linear", "block", "loop, instructions", "quantizer, per element", "quantizer, us", "us, overlapped", "us, serial", "us, 16 bits", "times faster"]  # fmt: skip
    print(f"{gpu.name}, {options.tokens} tokens of Llama-3.1-8B: predicted, not run on a GPU\n")
    print(tabulate(rows, headers, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
