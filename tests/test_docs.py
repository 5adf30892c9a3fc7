"""README and the pages of docs/ are run: each command prints what is shown below it, each Python block works.

A page's commands run in its order, in a folder with nothing but ``examples``. Figures that no two machines share are in blocks of no
language. Text that a model generates depends on the processor, as rounding does: of it only the prompts are compared.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from int8conv import errors

from .forks import python

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()
PRIVATE = (
    r"safety net|\bnet\b|\bcaught\b|quantis|\bpickers?\b|neighbour|small[ _]files|of which there|"
    r"stands? where|from afar|\bnobody announced|\bbytes an? (?:element|second)|\btokens a second"
)
"""Words that this project once had for itself, and constructions of other languages."""
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


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ``int8conv`` that runs in a fork (tests/forks.py)."""
    folder = tmp_path_factory.mktemp("programs")
    script = folder / "int8conv"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(python())} -m int8conv "$@"\n')
    script.chmod(0o755)
    return folder


def run(command: str, folder: Path, programs: Path | None = None) -> str:
    places = [*([programs] if programs else []), Path(sys.executable).parent, os.environ["PATH"]]
    path = os.pathsep.join(map(str, places))
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", command], cwd=folder, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), command
    return done.stdout


def comparable(command: str, printed: str) -> object:
    """What every machine prints: no seconds, and of generated text the prompts that it begins with."""
    if "int8conv generate" not in command:
        return _SECONDS.sub("in # s", printed)
    prompts = re.findall(r"--prompt \"(.*?)\"|printf '(.*?)'", command)
    assert printed.strip()
    return [prompt for pair in prompts for prompt in pair if prompt and prompt in printed]


def test_generated_text_is_compared_by_its_prompts() -> None:
    """What is left of it is not nothing."""
    command = 'int8conv generate OUT --prompt "A b" --prompt "C d"'
    assert (
        comparable(command, "A b x\nC d y\n")
        == comparable(command, "A b\nC d z\n")
        == ["A b", "C d"]
    )
    assert comparable(command, "A b x\nC e\n") == ["A b"]
    assert comparable("int8conv inspect OUT", "1 in 0.1 s") == comparable(
        "int8conv inspect OUT", "1 in 2.3 s"
    )
    assert comparable("int8conv inspect OUT", "1") != comparable("int8conv inspect OUT", "2")


def test_commands_print_what_is_shown(page: Path, folder: Path, programs: Path) -> None:
    """The README's as a user has them; the others' in forks."""
    forks = None if page.stem == "README" else programs
    for block in blocks(page, "console"):
        for command, expected in commands(block):
            printed = run(command, folder, forks)
            assert comparable(command, printed) == comparable(command, expected), command


def test_python_blocks_run(page: Path, folder: Path) -> None:
    interpreter = [sys.executable] if page.stem == "README" else python()
    for block in blocks(page, "python"):
        assert run(f"{shlex.join(interpreter)} - <<'END'\n{block}\nEND", folder)


def test_the_tour_is_make_demo_and_the_readme_a_part_of_it() -> None:
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo"], cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = [line.replace(".venv/bin/", "") for line in recipe.splitlines()]
    demo = [line for line in lines if line.startswith("int8conv")]
    tour = commands(blocks(ROOT / "docs" / "tour.md", "console")[0])
    assert [command for command, _ in tour] == demo
    assert len(demo) == 4
    readme = commands(blocks(ROOT / "README.md", "console")[0])
    assert {command.partition(" | ")[0] for command, _ in readme} <= set(demo)


def test_the_readme_has_a_first_result_within_40_lines() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any(line.startswith("A vector is a") for line in lines[:40])
    assert {"    make demo", "    make test"} <= {
        line.split("  #")[0].rstrip() for line in lines[:40]
    }


def test_targets_of_make_that_pages_name_exist(page: Path) -> None:
    for target in re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_modules_that_pages_name_exist(page: Path) -> None:
    for path in re.findall(
        r"`((?:int8conv|tests|benchmarks|examples)/[\w/.-]*)`", page.read_text()
    ):
        if path not in ("benchmarks/results/gpu.json",):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize(("heading", "most"), [("one tensor", 10), ("one command", 6)])
def test_the_paths_of_contributing_are_short(heading: str, most: int) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text[text.index(f"### The path of {heading}") :].partition("\n#")[0]
    files = re.findall(r"^\d+\. `(int8conv/[\w/.]+)`", section, re.MULTILINE)
    assert 4 < len(files) <= most
    assert all((ROOT / file).is_file() for file in files)


def test_errors_that_pages_name_exist_and_every_one_has_a_remedy() -> None:
    pages = {page.name: set(re.findall(r"\b\w+Error\b", page.read_text())) for page in PAGES}
    found = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    tree = {name: value for name, value in found.items() if issubclass(value, errors.Int8convError)}
    assert set().union(*pages.values()) <= set(tree)
    bases = {base for value in tree.values() for base in value.__bases__}
    assert {name for name, value in tree.items() if value not in bases} <= pages["operating.md"]


def test_python_versions_agree() -> None:
    """What pyproject.toml asks for is what ruff and mypy check, and what the README says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest = project["project"]["requires-python"].removeprefix(">=")
    assert project["tool"]["mypy"]["python_version"] == oldest
    assert project["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert f"Python {oldest} or newer" in (ROOT / "README.md").read_text()
    assert f"Python {oldest} or newer" in MAKEFILE


def test_links_lead_somewhere(page: Path) -> None:
    """Those within the repository."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    for link in links:
        assert (page.parent / link).exists(), link


def test_pages_speak_the_language_of_the_field(page: Path) -> None:
    text = page.read_text()
    if page.name == "CONTRIBUTING.md":  # says which words not to use
        text = text.partition("## English")[0]
    assert re.findall(PRIVATE, text, re.IGNORECASE) == []


def test_code_speaks_the_language_of_the_field() -> None:
    """Names, docstrings, comments and messages of the package."""
    found = {
        (path.name, word)
        for path in (ROOT / "int8conv").rglob("*.py")
        for word in re.findall(PRIVATE, path.read_text(), re.IGNORECASE)
    }
    assert found == set()
