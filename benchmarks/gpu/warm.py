"""Compiles in several processes at once what the sections will launch, into Triton's cache on disk: one after the other it would take
longer than everything else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[2]
PARTS: dict[str, Sequence[Sequence[str]]] = {
    "correctness": [["--only", "correctness", "--part", f"{i}/4"] for i in range(4)],
    "graphs": [["--only", "graphs"]],
    "end to end": [["--only", "end-to-end"]],
    "gemv": [["--only", "gemv,cost,cache"]],
    "gemm": [["--only", "gemm", "--part", f"{i}/3"] for i in range(3)],
    "gemm, other models": [["--only", "gemm-other-models"]],
    "sanitizer": [["--only", "correctness", "--shape", "tiny"]],
}
"""Processes by the section that needs them."""


def warm(sections: Sequence[str], seconds: float) -> float:
    """Run those of the sections, stop them when the time is up, and say how long it took."""
    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--compile-only"]
    running = [
        subprocess.Popen(
            [*command, *part], cwd=_ROOT, env=os.environ, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for section in sections for part in PARTS.get(section, ())
    ]  # fmt: skip
    for process in running:
        try:
            process.wait(max(started + seconds - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return time.monotonic() - started
