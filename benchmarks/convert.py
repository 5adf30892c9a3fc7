"""Conversion: wall time and peak memory of the whole process, beside ``cp -r`` and every peer that is installed.

    python benchmarks/convert.py [--runs 5] [--layers 22] [--folder FOLDER]

Makes a checkpoint of random fp16 weights (22 layers of hidden 2048: 2.2 GB) in FOLDER, or in a temporary one, and takes turns:
copy, convert, peers, copy, convert, ... so that a machine whose speed drifts does not favour either. Files are in the page cache
after the first, uncounted turn. Prints medians and the ratio pair by pair.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import convert_peers
import random_checkpoint
from tabulate import tabulate


class Usage(NamedTuple):
    """Of a finished process."""

    wall: float
    cpu: float
    peak_mib: float


def measure(command: list[str]) -> Usage | None:
    """Run a command to its end and read the operating system's account of it; None if it failed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    message = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        print(f"{' '.join(command)} failed: {message.splitlines()[-1]}", file=sys.stderr)
        return None
    wall = time.perf_counter() - start
    return Usage(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def compare(folder: Path, runs: int, layers: int) -> None:
    source, copied, out = folder / "source", folder / "copy", folder / "int8"
    if not source.exists():
        random_checkpoint.write(source, layers)
    commands = {
        "cp -r": ["cp", "-r", str(source), str(copied)],
        "int8conv convert --outliers none": [
            sys.executable, "-m", "int8conv", "convert", str(source), str(out), "--outliers", "none",
        ],
    }  # fmt: skip
    script = str(Path(__file__).parent / "convert_peers.py")
    for peer in convert_peers.installed():
        commands[peer] = [sys.executable, script, peer, str(source), str(out)]
    usages: dict[str, list[Usage]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            usage = measure(command)
            shutil.rmtree(copied, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)
            if turn and usage is not None:
                usages[name].append(usage)
    floor = [usage.wall for usage in usages["cp -r"]]
    rows = [
        [
            name,
            *(f"{median(values):.2f}" for values in zip(*measured, strict=True)),
            f"{median(u.wall / f for u, f in zip(measured, floor, strict=False)):.2f}x",
        ]
        for name, measured in usages.items()
        if measured
    ]
    size = sum(path.stat().st_size for path in source.iterdir())
    print(f"{size / 1e9:.2f} GB, {runs} runs, {os.cpu_count()} cores, {platform.machine()}")
    print(
        tabulate(
            rows, ["command", "wall s", "cpu s", "peak MiB", "wall / cp"], disable_numparse=True
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=random_checkpoint.CONFIG["num_hidden_layers"])
    parser.add_argument("--folder", type=Path, help="Kept; default: a temporary folder.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare(arguments.folder or Path(temporary), arguments.runs, arguments.layers)
