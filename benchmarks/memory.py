"""Peak memory of a conversion: it must follow neither the number of layers nor the size of the largest tensor.

    python benchmarks/memory.py [--layers 5] [--runs 3] [--folder FOLDER]

Converts with ``--outliers none`` a checkpoint of LAYERS layers, one of four times as many, and one with a single matrix of
4.3 GB, each under several ``--max-memory``; prints the peak resident memory of the whole process as the operating system
counts it, and its ratio to that of the small checkpoint. ``-`` for the least that Python with numpy takes by itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import random_checkpoint
from convert import measure
from tabulate import tabulate

from int8conv.formats.int8.layout import TensorSpec

LIMITS = ("128MB", "256MB", "1GB")
LARGE = TensorSpec("blocks.0.mixer.weight", "F16", (65536, 32768))


def write_large(folder: Path) -> None:
    """A model of one linear."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "one_matrix"}))
    random_checkpoint.write_shard(folder / "model.safetensors", [LARGE], seed=0)


def peak(source: Path, out: Path, limit: str, runs: int) -> float:
    """MiB, the median over runs."""
    command = [sys.executable, "-m", "int8conv", "convert", str(source), str(out)]
    command += ["--outliers", "none", "--max-memory", limit]
    peaks = []
    for _ in range(runs):
        usage = measure(command)
        if usage is None:
            sys.exit(1)
        peaks.append(usage.peak_mib)
        shutil.rmtree(out)
    return median(peaks)


def compare(folder: Path, layers: int, runs: int) -> None:
    sources = {f"{count} layers": folder / f"{count}-layers" for count in (layers, 4 * layers)}
    sources["one matrix"] = folder / "one-matrix"
    for count, source in zip((layers, 4 * layers), sources.values(), strict=False):
        if not source.exists():
            random_checkpoint.write(source, count)
    if not sources["one matrix"].exists():
        write_large(sources["one matrix"])
    idle = measure([sys.executable, "-c", "import numpy"])
    rows = [["import numpy", "", "-", f"{idle.peak_mib:.1f}" if idle else "", ""]]
    for limit in LIMITS:
        first = None
        for name, source in sources.items():
            size = sum(path.stat().st_size for path in source.iterdir()) / 1e9
            found = peak(source, folder / "int8", limit, runs)
            first = first or found
            rows.append([name, f"{size:.2f}", limit, f"{found:.1f}", f"{found / first:.2f}x"])
    headers = ["source", "GB", "--max-memory", "peak MiB", f"/ {layers} layers"]
    print(tabulate(rows, headers, disable_numparse=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Kept; default: a temporary folder.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare(arguments.folder or Path(temporary), arguments.layers, arguments.runs)
