"""Peak memory of ``int8conv calibrate`` for checkpoints of different depth: it follows the largest block, not the model.

    python benchmarks/calibrate_memory.py [--layers 4 16] [--tokens 512]

Each run is a process of its own; blocks are those of the 1.1-billion-parameter shape of random_checkpoint.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import random_checkpoint
from tabulate import tabulate

_MEASURE = """
import resource, sys, time
from int8conv.cli import main
start = time.perf_counter()
main(sys.argv[1:], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.perf_counter() - start)
"""


def measure(source: Path, out: Path, tokens: int) -> tuple[float, float]:
    """Peak MiB and seconds."""
    (
        source / "tokenizer.json"
    ).unlink()  # its tokens are words that no text has: random tokens instead
    command = ["calibrate", str(source), "-o", str(out), "--tokens", str(tokens)]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *command], capture_output=True, text=True, check=True
    )
    peak, seconds = done.stdout.splitlines()[-1].split()
    return float(peak), float(seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--tokens", type=int, default=512)
    arguments = parser.parse_args()
    rows = []
    for layers in arguments.layers:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "source"
            random_checkpoint.write(source, layers)
            size = sum(file.stat().st_size for file in source.iterdir())
            peak, seconds = measure(source, Path(folder) / "stats", arguments.tokens)
        rows.append([layers, f"{size / 2**20:.0f}", f"{peak:.0f}", f"{seconds:.0f}"])
    print(tabulate(rows, ["layers", "checkpoint MiB", "peak MiB", "s"], disable_numparse=True))
