"""How many tokens calibration needs: time, and how good a choice of outlier columns fewer tokens make.

    python benchmarks/calibration_tokens.py MODEL... [--tokens 256 512 1024] [--other TEXT]

Compares columns chosen from fewer tokens of the built-in text with those from all of it, for the rules ``error`` and ``absmax``: the share of columns that
are the same, and the expected error (see column_choice.py; activations as measured on all tokens, or on those of TEXT) that the columns leave,
relative to that of the columns from all tokens.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import geometric_mean

import torch
from column_choice import expected
from tabulate import tabulate

from int8conv.convert.outliers.calibrate import calibrate
from int8conv.convert.outliers.rule import Choosing, OutlierChoice, choose_all
from int8conv.formats.int8.stats import Stats
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.weights.weights import CheckpointWeights

Choices = dict[str, OutlierChoice]


def errors(model: Path, seen: Stats, every: list[Choices]) -> list[list[float]]:
    """Per choice, the expected error of each input, relative to that of the first choice."""
    checkpoint = open_checkpoint(model)
    weights = CheckpointWeights(checkpoint, torch.float32)
    found: list[list[float]] = [[] for _ in every]
    for group in read_architecture(checkpoint.config, checkpoint.tensors).groups():
        weight = torch.cat([weights.tensor(module) for module in group])
        moments = torch.from_numpy(seen.inputs[group[0].path].squares[0] / seen.tokens).float()
        left = [expected(weight, moments, c[group[0].path].columns.tolist()) for c in every]
        for row, value in zip(found, left, strict=True):
            row.append(value / left[0])
    return found


def main(arguments: argparse.Namespace) -> None:
    lines = []
    for model in arguments.models:
        calibrate(model, tokens=1)  # imports, and files into the page cache
        measured: list[tuple[Stats, float]] = []
        for tokens in [None, *sorted(arguments.tokens, reverse=True)]:
            start = time.process_time()
            stats = calibrate(model, tokens=tokens)
            measured.append((stats, time.process_time() - start))
        seen = calibrate(model, texts=[arguments.other], tokens=2048) if arguments.other else measured[0][0]  # fmt: skip
        for rule in ("error", "absmax"):
            every = [choose_all(stats, Choosing(rule)) for stats, _ in measured]  # type: ignore[arg-type]
            left = errors(model, seen, every)
            for (stats, seconds), choices, values in zip(measured, every, left, strict=True):
                same = total = 0
                for path, choice in every[0].items():
                    same += len(set(choice.columns.tolist()) & set(choices[path].columns.tolist()))
                    total += len(choice.columns)
                lines.append([model.name, rule, stats.tokens, f"{seconds:.1f}", f"{same / total:.0%}", f"{geometric_mean(values):.3f}"])  # fmt: skip
    headers = ["model", "rule", "tokens", "processor s", "same columns", "expected error"]
    print(tabulate(lines, headers, disable_numparse=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--other", type=Path, help="A text to measure the error on.")
    with torch.inference_mode():
        main(parser.parse_args())
