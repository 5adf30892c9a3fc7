"""Running on a CPU that other programs use too: what waiting threads cost that spin, and those that sleep.

    python benchmarks/busy.py FOLDER [--busy 1] [--prompt 128] [--new 48] [--rounds 3]

FOLDER is a converted one. ``int8conv bench`` runs in turn with threads that sleep while they wait, as the commands have it, and with
PyTorch's default, which spins; alone, and beside BUSY endless loops. Prints medians, and each as a ratio to threads that spin alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median

from tabulate import tabulate

WAITS = {"sleep": {"OMP_WAIT_POLICY": "PASSIVE"}, "spin": {"GOMP_SPINCOUNT": "300000"}}
"""Of GNU's OpenMP, which PyTorch brings: waiting passively, and its default number of spins where nothing is said."""
Speeds = tuple[float, float]
"""Tokens per second: prefill, decode."""


def measure(folder: Path, wait: str, prompt: int, new: int) -> Speeds:
    command = [
        sys.executable, "-m", "int8conv", "bench", str(folder), "--prompt-tokens", str(prompt), "--new-tokens", str(new),
        "--runs", "3", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, env=os.environ | WAITS[wait], stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    return found["prefill"]["tokens_per_second"], found["decode"]["tokens_per_second"]


def measure_beside(loops: int, arguments: argparse.Namespace) -> dict[tuple[int, str], Speeds]:
    """Medians beside a number of programs that do nothing but keep a processor busy."""
    found: dict[str, list[Speeds]] = {wait: [] for wait in WAITS}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        for _ in range(arguments.rounds):
            for wait, speeds in found.items():
                speeds.append(measure(arguments.folder, wait, arguments.prompt, arguments.new))
    finally:
        for process in busy:
            process.kill()
    return {
        (loops, wait): (median(p for p, _ in speeds), median(d for _, d in speeds))
        for wait, speeds in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--busy", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found = measure_beside(0, arguments) | measure_beside(arguments.busy, arguments)
    base = found[0, "spin"]
    rows = [
        [loops, wait, f"{p:.0f}", f"{p / base[0]:.2f}x", f"{d:.1f}", f"{d / base[1]:.2f}x"]
        for (loops, wait), (p, d) in found.items()
    ]
    print(f"{arguments.rounds} rounds, {os.cpu_count()} processors, {platform.machine()}")
    print(tabulate(rows, ["busy loops", "threads", "prefill tok/s", "", "decode tok/s", ""], disable_numparse=True))  # fmt: skip


if __name__ == "__main__":
    main()
