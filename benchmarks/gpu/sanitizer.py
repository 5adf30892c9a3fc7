"""compute-sanitizer over every kernel, on small odd shapes, without PyTorch's memory pool, which would hide errors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .session import Row, Session, skipped

_ROOT = Path(__file__).parents[2]
TOOLS = ("memcheck", "racecheck")


def rows(session: Session) -> Iterator[Row]:
    """A line a tool: errors that it found."""
    program = find()
    for tool in TOOLS:
        of = {"tool": tool}
        if not session.on_gpu:
            yield skipped(of, "no GPU")
        elif program is None:
            yield skipped(of, "compute-sanitizer is not installed")
        elif session.left() < 10:
            yield skipped(of, "no time left")
        else:
            yield of | run(program, tool, session.left())


def find() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), f"{home}/bin"]))  # fmt: skip


def run(program: str, tool: str, seconds: float) -> Row:
    """How many errors; or why there is no answer."""
    check = [sys.executable, "-m", "benchmarks.gpu.run", "--only", "correctness", "--shape", "tiny"]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            [program, "--tool", tool, "--target-processes", "application-only", *check],
            capture_output=True, text=True, cwd=_ROOT, env=environment, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return skipped({}, "no time left")
    found = re.search(r"ERROR SUMMARY: (\d+) error", done.stdout) or re.search(r"RACECHECK SUMMARY: (\d+) hazard", done.stdout)  # fmt: skip
    if found is None:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return skipped({}, f"exit code {done.returncode}: {(lines or [''])[-1]}")
    errors = [line.removeprefix("========= ") for line in done.stdout.splitlines() if re.match(r"=+ (Invalid|Error|Warning)", line)]  # fmt: skip
    return {"errors": int(found[1]), "first": errors[0] if errors else "", "exit code": done.returncode}  # fmt: skip
