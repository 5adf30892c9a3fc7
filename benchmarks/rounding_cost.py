"""What compensated rounding costs, from one linear of each shape of a model: seconds per layer, and for the whole model.

    python benchmarks/rounding_cost.py [--tokens 1536] [--models 1.1B 8B]

Measures the parts for each distinct input of a layer (the sum over tokens, its factor, the codes of the input's linears), on random numbers.
The run of the model itself comes on top: two operations per weight and token.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from tabulate import tabulate

from int8conv.convert.rounding.compensate import Compensation, Gram, damping_for

MODELS: dict[str, tuple[int, list[tuple[str, int, int]]]] = {
    "1.1B": (22, [("q k v", 2048, 2560), ("o", 2048, 2048), ("gate up", 2048, 11264), ("down", 5632, 2048)]),
    "8B": (32, [("q k v", 4096, 6144), ("o", 4096, 4096), ("gate up", 4096, 28672), ("down", 14336, 4096)]),
}  # fmt: skip
"""Layers, and for each input its linears, its width and the number of their rows."""


@torch.inference_mode()
def seconds(width: int, rows: int, tokens: int) -> tuple[float, float]:
    """Of the sum and its factor, and of the codes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator)
    weight = torch.randn(rows, width, generator=generator)
    scale = weight.abs().amax(1) / 127
    start = time.perf_counter()
    gram = Gram()
    gram.add(x)
    compensation = Compensation(gram.matrix(), torch.arange(16), damping_for(width, tokens))
    middle = time.perf_counter()
    compensation.codes(weight, scale)
    return middle - start, time.perf_counter() - middle


def main(arguments: argparse.Namespace) -> None:
    seconds(256, 256, 64)  # the first products of a process are slower
    lines = []
    for model in arguments.models:
        layers, inputs = MODELS[model]
        total = 0.0
        for linears, width, rows in inputs:
            factor, codes = seconds(width, rows, arguments.tokens)
            total += factor + codes
            lines.append(
                [model, linears, f"{width} -> {rows}", f"{factor:.2f}", f"{codes:.2f}", ""]
            )
            print(*lines[-1], flush=True)
        lines.append([model, f"{layers} layers", "", "", "", f"{total * layers / 60:.1f} min"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{torch.get_num_threads()} threads, {arguments.tokens} tokens; peak memory {peak:.0f} MiB"
    )
    headers = ["model", "linears", "shape", "factor s", "codes s", "all layers"]
    print(tabulate(lines, headers, disable_numparse=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1536)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    main(parser.parse_args())
