"""README is run: each command prints what README shows, each Python block works, and ``make demo`` is those commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
_SECONDS = re.compile(r"in \d+\.\d+ s")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output shown below it."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where README's commands run: a folder with ``examples``, and nothing else."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def run(command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", command], cwd=folder, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), command
    return done.stdout


def test_commands_print_what_readme_shows(folder: Path) -> None:
    shown = [pair for block in blocks("console") for pair in commands(block)]
    assert len(shown) >= 8
    for command, expected in shown:
        printed = run(command, folder)
        assert _SECONDS.sub("in # s", printed) == _SECONDS.sub("in # s", expected), command


def test_python_blocks_run(folder: Path) -> None:
    for block in blocks("python"):
        assert run(f"{sys.executable} - <<'END'\n{block}\nEND", folder)


def test_make_demo_is_the_first_block() -> None:
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo"], cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = [line.replace(".venv/bin/", "") for line in recipe.splitlines()]
    shown = [command for command, _ in commands(blocks("console")[0])]
    assert [line for line in lines if line.startswith("int8conv")] == shown
