"""A short form of ``benchmarks/kill.py``: whatever moments chance finds, what is left is right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_kills_at_random_moments() -> None:
    """In a process of its own, as it forks."""
    command = [sys.executable, ROOT / "benchmarks" / "kill.py", "--kills", "10", "--seed", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed 1: every output was whole")
