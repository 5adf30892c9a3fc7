"""What outlier columns, the outlier fallback and 16-bit activations cost a linear on a CPU.

    python benchmarks/fallback_cost.py [--tokens 256] [--runs 9]

A linear 5632 -> 2048 and one 2048 -> 5632 of random codes; medians, and ratios to W8A8 with neither columns nor fallback.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from statistics import median

import torch
from tabulate import tabulate

from int8conv.kernels.dispatch import Mode, mixed_linear
from int8conv.kernels.weight import MixedWeight


def seconds(x: torch.Tensor, weight: MixedWeight, mode: Mode, runs: int) -> float:
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        mixed_linear(x, weight, mode=mode)
        found.append(time.perf_counter() - start)
    return median(found)


def make(out: int, in_features: int, k: int) -> MixedWeight:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (out, in_features), dtype=torch.int8, generator=generator)
    scale = torch.full((out,), 1e-3)
    if not k:
        return MixedWeight(codes, scale)
    codes[:, :k] = 0
    return MixedWeight(codes, scale, torch.arange(k, dtype=torch.int32), torch.randn(out, k).half())


def measure(out: int, in_features: int, tokens: int, runs: int) -> list[list[str]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, in_features, generator=generator).clamp_(-5, 5)
    rare, dense = x.clone(), x.clone()
    rare[::16, 100] = 50.0
    dense[:, 100::64] = 50.0
    plain, columns = make(out, in_features, 0), make(out, in_features, 16)
    outlier_fallback = replace(columns, threshold=6.0)
    cases: dict[str, tuple[torch.Tensor, MixedWeight, Mode]] = {
        "W8A8": (x, plain, "w8a8"),
        "W8A8, 16 columns": (x, columns, "w8a8"),
        "W8A8, 16 columns, fallback: nothing caught": (x, outlier_fallback, "w8a8"),
        "W8A8, 16 columns, fallback: 1 channel at 1 token of 16": (rare, outlier_fallback, "w8a8"),
        "W8A8, 16 columns, fallback: 1 channel of 64 everywhere": (dense, outlier_fallback, "w8a8"),
        "W8A8, 16 columns, threshold 0 (all in 16 bits)": (x, replace(columns, threshold=None, activation_bits=16), "w8a8"),
        "W8A16, 16 columns": (x, columns, "w8a16"),
    }  # fmt: skip
    for case in cases.values():
        seconds(*case, runs=1)
    times = {name: seconds(*case, runs=runs) for name, case in cases.items()}
    base = times["W8A8"]
    return [
        [f"{in_features} -> {out}", name, f"{1000 * t:.1f}", f"{t / base:.2f}x"] for name, t in times.items()
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    rows = [
        row for out, in_features in ((2048, 5632), (5632, 2048))
        for row in measure(out, in_features, arguments.tokens, arguments.runs)
    ]  # fmt: skip
    print(f"{arguments.tokens} tokens, {os.cpu_count()} cores, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    print(tabulate(rows, ["linear", "", "ms", "ratio"], "github", disable_numparse=True))
