"""``benchmarks/cases.py`` on a folder of its own: what is right counts as right, and what is not as wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
POINTER = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
(folder / "config.json").write_text("{}")
(folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\\noid sha256:a\\nsize 1\\n")
"""


def run_cases(folder: Path, only: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks" / "cases.py", "--cases", folder, "--only", only]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_right_and_wrong(tmp_path: Path) -> None:
    (tmp_path / "lfs_bin.py").write_text(POINTER)
    done = run_cases(tmp_path, "lfs_bin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("1 cases: 1 right, 0 wrong\n")

    (tmp_path / "lfs_bin.py").write_text(POINTER.replace("version", "verse"))
    (tmp_path / "lfs_bin_too.py").write_text(POINTER)
    done = run_cases(tmp_path, "lfs_bin")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "convert: not /Git LFS pointer" in done.stdout
    assert "lfs_bin_too: no row in the table" in done.stdout
    assert done.stdout.endswith("2 cases: 0 right, 2 wrong\n")
