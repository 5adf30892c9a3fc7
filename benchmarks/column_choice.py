"""How much expected error each way of choosing outlier columns leaves, as a fraction of that without columns.

    python benchmarks/column_choice.py MODEL [--layers 2 8 14] [--columns 16]

The expected squared error of a linear's output is the sum over rows of the squared scale, times the sum over columns of the second moments of the
activations, both without the outlier columns. "absmax" and "error" rank columns as ``convert`` does; "greedy" takes, one after another, the
column whose absence lowers the error most, counting how it shrinks the scales of the rows in which it is the largest.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import geometric_mean

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from int8conv.convert.outliers.calibrate import calibrate
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.weights.weights import CheckpointWeights


def expected(weight: Tensor, moments: Tensor, columns: list[int]) -> float:
    keep = torch.ones(len(moments), dtype=torch.bool)
    keep[columns] = False
    return float(weight[:, keep].abs().amax(1).square().sum() * moments[keep].sum())


def greedy(weight: Tensor, moments: Tensor, count: int) -> list[int]:
    rest, left, chosen = weight.abs(), moments.clone(), list[int]()
    for _ in range(count):
        (first, second), (places, _) = (t.unbind(1) for t in rest.topk(2, 1))
        shrunk = torch.zeros_like(left).index_add_(0, places, first.square() - second.square())
        gain = left * first.square().sum() + left.sum() * shrunk
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        rest[:, chosen[-1]] = left[chosen[-1]] = 0
    return chosen


def main(arguments: argparse.Namespace) -> None:
    stats, checkpoint = calibrate(arguments.model), open_checkpoint(arguments.model)
    architecture = read_architecture(checkpoint.config, checkpoint.tensors)
    weights = CheckpointWeights(checkpoint, torch.float32)
    found: dict[str, dict[str, list[float]]] = {}
    for group in architecture.groups():
        if group[0].layer not in arguments.layers:
            continue
        seen = stats.inputs[group[0].path]
        moments = torch.from_numpy(seen.squares[0] / stats.tokens).float()
        weight = torch.cat([weights.tensor(module) for module in group])
        ranks = {"absmax": seen.absmax, "error": np.sqrt(seen.squares[0]) * seen.weight_error}
        choices = {
            name: np.argsort(-rank, kind="stable")[: arguments.columns].tolist()
            for name, rank in ranks.items()
        }
        choices["greedy"] = greedy(weight, moments, arguments.columns)
        row = found.setdefault(group[0].path.rpartition(".")[2], {})
        for name, columns in choices.items():
            left = expected(weight, moments, columns) / expected(weight, moments, [])
            row.setdefault(name, []).append(left)
    rows = [[name, *(f"{geometric_mean(v):.3f}" for v in row.values())] for name, row in found.items()]  # fmt: skip
    print(f"{arguments.model.name}, layers {arguments.layers}, {arguments.columns} columns")
    print(tabulate(rows, ["input of", "absmax", "error", "greedy"], disable_numparse=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 8, 14])
    parser.add_argument("--columns", type=int, default=16)
    with torch.inference_mode():
        main(parser.parse_args())
