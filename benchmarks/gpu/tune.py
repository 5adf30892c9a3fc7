"""Measures launch configurations on this GPU and writes its rows of ``int8conv/kernels/gpu/configs.json``.

    python -m benchmarks.gpu.tune [--kernels gemm,skinny,gemv] [--dry-run]

For each kernel and bound of the table, every candidate is held to the PyTorch reference and timed on the layers of
Llama-3.1-8B; the one with the smallest sum of times relative to each layer's best wins. A candidate that does not compile,
spills or is wrong drops out. ``TRITON_INTERPRET=1 ... --tiny`` rehearses it without a GPU and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.host import processors
from int8conv.kernels.gpu import configs, launch, reference
from int8conv.kernels.gpu.gemm import gemm
from int8conv.kernels.gpu.quantize import quantize
from int8conv.kernels.gpu.skinny import w8a16
from int8conv.runtime.backends.gpu.compiling import ahead_of_time
from int8conv.runtime.devices import Target

from .layers import SHAPES, random_tokens, random_weight
from .timing import seconds

Config = dict[str, int]
FINALISTS = 5
"""Fastest tiles of ``gemm`` that are tried once more through the tensor memory accelerator."""


def candidates(kernel: str) -> Iterator[Config]:
    """Configurations worth trying."""
    if kernel == "gemm":
        for m, n, k, parts, warps, stages in itertools.product((64, 128, 256), (64, 128, 256), (64, 128), (1, 2), (4, 8), (3, 4)):  # fmt: skip
            if m * n <= 32768 and m * n >= 4096 * warps // 4:
                for zero in (0, 1):
                    yield {"from_zero": zero, "block_m": m, "block_n": n, "block_k": k, "group": 8, "num_warps": warps, "num_stages": stages, "parts": parts}  # fmt: skip
    elif kernel == "skinny":
        for n, k, split, warps, stages in itertools.product((32, 64, 128), (64, 128), (1, 2, 4, 8), (4, 8), (3, 4, 6)):  # fmt: skip
            yield {"block_n": n, "block_k": k, "split": split, "num_warps": warps, "num_stages": stages}  # fmt: skip
    else:
        for n, warps, passes in itertools.product((16, 32), (4, 8, 16), (1, 2, 4)):
            yield {"block_n": n, "block_k": 64 * warps * passes, "num_warps": warps}


def bounds(kernel: str) -> list[dict[str, int]]:
    """The conditions of the rows to write, the last without any."""
    if kernel == "gemm":
        return [{"max_tokens": 64}, {"max_tokens": 256}, {"max_tokens": 1024}, {}]
    if kernel == "gemv":
        return [{"max_tokens": 8, "max_out": 8192}, {"max_tokens": 8}, {"max_out": 8192}, {}]
    return [{"max_out": 4096}, {"max_out": 16384}, {}]


def calls(kernel: str, row: dict[str, int], shapes: dict[str, tuple[int, int]], device: torch.device) -> list[tuple[Callable[[Config], Tensor], Tensor]]:  # fmt: skip
    """For each layer that the row is for: the launch, and its right result."""
    found = []
    dtype = torch.float16
    for name, (out, channels) in shapes.items():
        if out > row.get("max_out", out):
            continue
        weight = random_weight(out, channels, 0.001, dtype, device)
        tokens = row.get("max_tokens", 4096 if device.type == "cuda" else 70) if kernel == "gemm" else 32 if kernel == "skinny" else 1 if "max_tokens" in row else 16  # fmt: skip
        x = random_tokens(tokens, channels, dtype, device)
        if kernel == "gemm":
            q = quantize(x, index=weight.outlier_index, is_outlier=weight.is_outlier)
            found.append((lambda c, q=q, w=weight: gemm(q, w, config=c), gemm(q, weight)))
        else:
            how = {"activation": "silu" if name == "gate_up" else "none"}
            found.append((lambda c, x=x, w=weight, h=how: w8a16(x, w, config=c, **h), w8a16(x, weight, **how)))  # fmt: skip
            if device.type == "cpu":
                torch.testing.assert_close(found[-1][1], reference.w8a16(x, weight, **how), atol=1e-2, rtol=1e-2)  # fmt: skip
    return found


def best(kernel: str, row: dict[str, int], shapes: dict[str, tuple[int, int]], device: torch.device, limit: int | None) -> Config | None:  # fmt: skip
    """The candidate with the smallest times on the row's layers."""
    layers = calls(kernel, row, shapes, device)
    _compiled(itertools.islice(candidates(kernel), limit), layers, device)
    times = _measured(itertools.islice(candidates(kernel), limit), layers, device)
    if not times or not layers:
        return None
    if kernel == "gemm" and (device.type == "cpu" or launch.capability(device) >= 90):
        fastest = [json.loads(config) for config in _sorted(times)[:FINALISTS]]
        times |= _measured((dict(configs.with_tma(config)) for config in fastest), layers, device)
    found: Config = json.loads(_sorted(times)[0])
    return found


def _compiled(trials: Iterable[Config], layers: list[tuple[Callable[[Config], Tensor], Tensor]], device: torch.device) -> None:  # fmt: skip
    """Compile all trials at once, on all processors; those that cannot be drop out where they are measured."""
    if device.type != "cuda":
        return
    target = Target(launch.capability(device), device)
    with ahead_of_time(target, processors(), ignore_errors=True):
        for config, (run, _) in itertools.product(trials, layers):
            with contextlib.suppress(ArgumentError):
                run(config)


def _measured(trials: Iterable[Config], layers: list[tuple[Callable[[Config], Tensor], Tensor]], device: torch.device) -> dict[str, list[float]]:  # fmt: skip
    """Seconds on each layer by configuration, of those that compile and are right."""
    times = {}
    for config in trials:
        try:
            for run, expected in layers:
                torch.testing.assert_close(run(config), expected, atol=1e-2, rtol=1e-2)
            times[json.dumps(config)] = [seconds([lambda r=run, c=config: r(c)], device) for run, _ in layers]  # fmt: skip
        except Exception as error:
            sys.stderr.write(f"{config}: {type(error).__name__}\n")
    return times


def _sorted(times: dict[str, list[float]]) -> list[str]:
    """The smallest sum of times relative to each layer's best first."""
    least = [min(column) for column in zip(*times.values(), strict=True)]
    return sorted(times, key=lambda c: sum(t / s for t, s in zip(times[c], least, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", default="gemm,skinny,gemv")
    parser.add_argument("--dry-run", action="store_true", help="print the rows, write nothing")
    parser.add_argument("--tiny", action="store_true", help="two candidates on tiny layers, on the CPU")  # fmt: skip
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda")
    shapes = SHAPES["tiny" if options.tiny else "Llama-3.1-8B"]
    table: dict[str, Any] = json.loads(resources.files(configs.__package__).joinpath("configs.json").read_text())  # fmt: skip
    gpu = str(configs.generation(launch.capability(device)))
    for kernel in options.kernels.split(","):
        rows = []
        for row in bounds(kernel)[-1 if options.tiny else 0 :]:
            config = best(kernel, row, shapes, device, 2 if options.tiny else None)
            if config is not None:
                rows.append(row | config)
        if rows:
            table[kernel][gpu] = rows
            sys.stdout.write(f"{kernel} {gpu}: {json.dumps(rows)}\n")
        if (
            not options.dry_run and not options.tiny
        ):  # after each kernel: a later one may be cut off
            Path(str(resources.files(configs.__package__))).joinpath("configs.json").write_text(configs.dumps(table))  # fmt: skip


if __name__ == "__main__":
    main()
