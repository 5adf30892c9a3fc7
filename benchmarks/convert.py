"""Conversion: wall time and peak memory of the whole process, beside ``cp -r`` and every peer that is installed.

    python benchmarks/convert.py [--runs 5] [--layers 22] [--folder FOLDER] [--before TREE]

Makes a checkpoint of random fp16 weights (22 layers of hidden 2048: 2.2 GB) in FOLDER, or in a temporary one, and takes turns:
copy, convert, peers, copy, convert, ... so that a machine whose speed drifts does not favour either. Files are in the page cache
after the first, uncounted turn. Prints medians and the ratio pair by pair. ``--before`` takes turns with another checkout of this repository, whose
row then has its own ratio to the copy, and that of this one to it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
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
    output: str


COPY = "cp -r"
OURS = "int8conv convert --outliers none"
BEFORE = f"{OURS}, before"

_LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
child = os.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
wall = time.perf_counter() - start
print(json.dumps([os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
"""
"""A peak begins with that of the process which was forked: so with a small one, not with a benchmark full of arrays."""


def measure(command: list[str], tree: Path | None = None) -> Usage | None:
    """Run a command to its end and read the operating system's account of it; None if it failed. ``tree``: where int8conv is."""
    paths = os.environ if tree is None else os.environ | {"PYTHONPATH": str(tree)}
    launcher = [sys.executable, "-S", "-E", "-c", _LAUNCHER, *command]
    done = subprocess.run(launcher, capture_output=True, text=True, check=True, env=paths)
    output, _, account = done.stdout.rstrip().rpartition("\n")
    code, wall, cpu, peak = json.loads(account)
    if code:
        print(f"{' '.join(command)} failed: {done.stderr.splitlines()[-1]}", file=sys.stderr)
        return None
    return Usage(wall, cpu, peak, output)


def compare(folder: Path, runs: int, layers: int, before: Path | None = None) -> None:
    source, copied, out = folder / "source", folder / "copy", folder / "int8"
    if not source.exists():
        random_checkpoint.write(source, layers)
    commands = {
        COPY: ["cp", "-r", str(source), str(copied)],
        OURS: [
            sys.executable, "-m", "int8conv", "convert", str(source), str(out), "--outliers", "none",
            "--json",
        ],
    }  # fmt: skip
    trees = {OURS: Path(__file__).parents[1]}
    if before is not None:
        commands[BEFORE], trees[BEFORE] = commands[OURS], before.resolve()
    script = str(Path(__file__).parent / "convert_peers.py")
    for peer in convert_peers.installed():
        commands[peer] = [sys.executable, script, peer, str(source), str(out)]
    usages: dict[str, list[Usage]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            usage = measure(command, trees.get(name))
            shutil.rmtree(copied, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)
            if turn and usage is not None:
                usages[name].append(usage)
    size = sum(path.stat().st_size for path in source.iterdir())
    print(f"{size / 1e9:.2f} GB, {runs} runs, {os.cpu_count()} cores, {platform.machine()}")
    show_usages(usages)
    show_parts(usages[OURS])


def show_usages(usages: dict[str, list[Usage]]) -> None:
    """Medians, and the medians of ratios turn by turn."""

    def ratio(ones: list[Usage], others: list[Usage]) -> str:
        pairs = zip(ones, others, strict=False)
        return f"{median(one.wall / other.wall for one, other in pairs):.2f}x"

    rows = [
        [
            name,
            f"{median(usage.wall for usage in measured):.2f}",
            f"{median(usage.cpu for usage in measured):.2f}",
            f"{median(usage.peak_mib for usage in measured):.1f}",
            ratio(measured, usages[COPY]),
            ratio(usages[OURS], measured),
        ]
        for name, measured in usages.items()
        if measured
    ]
    headers = ["command", "wall s", "cpu s", "peak MiB", "wall / cp", "int8conv / it"]
    print(tabulate(rows, headers, disable_numparse=True))


def show_parts(measured: list[Usage]) -> None:
    """Where int8conv's median run spends its time."""
    usage = sorted(measured)[len(measured) // 2]
    report = json.loads(usage.output)
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report["stages"].items())
    print(
        f"\nPython's start-up and exit {usage.wall - report['seconds']:.2f} s; summed over all workers: {stages}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=random_checkpoint.CONFIG["num_hidden_layers"])
    parser.add_argument("--folder", type=Path, help="Kept; default: a temporary folder.")
    parser.add_argument(
        "--before", type=Path, help="Another checkout, which takes turns with this."
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare(
            arguments.folder or Path(temporary), arguments.runs, arguments.layers, arguments.before
        )
