"""README and the pages of docs/ are run: each command prints what is shown below it, each Python block works.

A page's commands run in its order, in a folder with nothing but ``examples``. Figures that no two machines share stand in
blocks of no language.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_SECONDS = re.compile(r"in \d+\.\d+ s")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output shown below it."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: page.stem)
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture(scope="module")
def folder(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a page's commands run."""
    folder = tmp_path_factory.mktemp(page.stem)
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


def test_commands_print_what_is_shown(page: Path, folder: Path) -> None:
    for block in blocks(page, "console"):
        for command, expected in commands(block):
            printed = run(command, folder)
            assert _SECONDS.sub("in # s", printed) == _SECONDS.sub("in # s", expected), command


def test_python_blocks_run(page: Path, folder: Path) -> None:
    for block in blocks(page, "python"):
        assert run(f"{sys.executable} - <<'END'\n{block}\nEND", folder)


def test_make_demo_is_the_first_block() -> None:
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo"], cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = [line.replace(".venv/bin/", "") for line in recipe.splitlines()]
    shown = [command for command, _ in commands(blocks(PAGES[0], "console")[0])]
    assert len(shown) == 4
    assert [line for line in lines if line.startswith("int8conv")] == shown


def test_links_lead_somewhere(page: Path) -> None:
    """Those within the repository."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    for link in links:
        assert (page.parent / link).exists(), link
