"""mypy on a program that uses the public names: real types, and wrong calls are refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import int8conv

PROGRAM = Path(__file__).with_name("program.py")

REVEALED = [
    "int8conv.formats.int8.stats.Stats",
    "int8conv.convert.report.ConvertReport",
    "float",
    "dict[str, int8conv.convert.report.LinearQuality]",
    "int8conv.runtime.model.Model",
    "int8conv.runtime.measure.footprint.Footprint",
    "int",
    "int8conv.runtime.generate.sampling.Sampling",
    "int8conv.runtime.generate.generation.Generation",
    "str",
    "list[float] | None",
    "list[int8conv.runtime.generate.generation.Generation]",
    "torch._tensor.Tensor",
    "int8conv.formats.int8.summary.FolderSummary",
    "int",
    "int",
    "int8conv.convert.compare.SourceComparison",
    "float | None",
    "int8conv.runtime.measure.evaluate.Evaluation",
    "int8conv.runtime.measure.evaluate.Comparison | None",
    "int8conv.runtime.measure.footprint.Footprint",
    "str",
    "int8conv.errors.NotFoundError",
    "str | None",
    "int8conv.errors.Int8convError",
]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What mypy says, run from elsewhere, as for a package that is installed."""
    pytest.importorskip("mypy")
    package = Path(int8conv.__file__).parent
    environment = {"MYPYPATH": str(package.parent), "PATH": "/usr/bin:/bin"}
    command = [
        sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--python-version", "3.10", "--no-pretty",
        "--cache-dir", str(package.parent / ".mypy_cache" / "typing"), PROGRAM.name,
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("typing")
    (folder / PROGRAM.name).write_text(PROGRAM.read_text())
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_every_type_is_a_real_one(output: str) -> None:
    revealed = re.findall(r'note: Revealed type is "(.*)"', output)
    plain = [re.sub(r"\bbuiltins\.", "", found) for found in revealed]
    assert plain == REVEALED
    assert not any("Any" in found for found in plain)


def test_wrong_calls_are_refused(output: str) -> None:
    errors = re.findall(r"error: (.*)  \[(.*)\]", output)
    assert [code for _, code in errors] == ["call-arg", "arg-type", "arg-type", "attr-defined"]
    names = ("temprature", "top_k", "outliers", "quantize_it")
    for (message, _), name in zip(errors, names, strict=True):
        assert f'"{name}"' in message
