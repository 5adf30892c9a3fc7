"""SIGKILL a conversion at random moments, then let the same command finish: the bytes must be an undisturbed run's.

    python benchmarks/kill.py [--kills 100] [--seed N] [--source examples/small-llama]

Each round converts with ``--outliers none``, kills the process after a random time (up to that of a whole run), checks that
an output that is there at all is whole, and every few kills lets the command finish and compares every byte.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def attack(source: Path, folder: Path, kills: int, seed: int) -> None:
    out, expected = folder / "out", folder / "expected"
    command = [sys.executable, "-m", "int8conv", "convert", str(source), "--outliers", "none"]
    whole = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([*command, "--force", str(expected)], check=True, stdout=subprocess.DEVNULL)
        whole = min(whole, time.perf_counter() - start)
    wanted = contents(expected)
    rng = random.Random(seed)
    killed = finished = resumed = 0
    while killed < kills:
        process = subprocess.Popen(
            [*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0.3, 1) * whole)
        process.kill()
        killed += process.wait() == -9
        if out.exists():
            finished += 1
        elif rng.random() < 0.3:
            done = subprocess.run([*command, str(out)], check=True, capture_output=True, text=True)
            resumed += "done before" in done.stderr
        if out.exists():
            if contents(out) != wanted:
                sys.exit(f"seed {seed}, after {killed} kills: the output differs")
            shutil.rmtree(out)
    print(
        f"seed {seed}: {killed} kills, {finished} runs were faster, {resumed} resumed; every output was whole and the same"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    default = Path(__file__).parent.parent / "examples" / "small-llama"
    parser.add_argument("--source", type=Path, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        attack(arguments.source, Path(temporary), arguments.kills, arguments.seed)
