"""``inspect --plot``: what is drawn, from which figures, and what it refuses."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import int8conv
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.stats import write_stats

from ...formats.int8.test_stats import make_stats
from ..helpers import check_refused, edit_json, run, succeed

pytest.importorskip("matplotlib")


def test_a_picture_of_each_kind(example: Path, example_int8: Path, tmp_path: Path) -> None:
    plain = succeed("inspect", example_int8).stdout
    drawn = succeed("inspect", example_int8, "--plot", tmp_path / "a.png")
    assert drawn.stdout == plain
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    succeed("calibrate", example, "-o", tmp_path / "s", "--tokens", 256)
    options = ["--stats", tmp_path / "s", "--against", example]
    succeed("inspect", example_int8, "--plot", tmp_path / "b.svg", *options)
    text = (tmp_path / "b.svg").read_text()
    assert text.startswith("<?xml")
    for words in ("relative RMS error of int8 weights, measured", "largest |activation|"):
        assert words in text.replace("&gt;", ">") or "<!--" in text
    assert "<!-- channel -->" in text
    assert "<!-- layer -->" in text
    assert "<!-- error, % -->" in text


def test_without_any_columns(example: Path, tmp_path: Path) -> None:
    int8conv.convert_checkpoint(example, tmp_path / "out", outliers="none")
    succeed("inspect", tmp_path / "out", "--plot", tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 1000


def test_refusals(example_int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_refused(run("inspect", example_int8, "--plot", "a.pdf"), ".png or .svg", "a.pdf")
    check_refused(run("inspect", example_int8, "--plot", tmp_path / "no" / "a.png"), "no/a.png")
    assert run("inspect", example_int8, "--stats", tmp_path / "s").exit_code == 2
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("inspect", example_int8, "--plot", tmp_path / "a.png")
    check_refused(result, "needs matplotlib", "int8conv[plot]")


def test_statistics_of_another_model(example_int8: Path, tmp_path: Path) -> None:
    stats = make_stats(
        linears={"model.q": ("model.q",)}, inputs={"model.q": make_stats().inputs["model.q"]}
    )
    write_stats(stats, tmp_path / "ghost")
    picture = tmp_path / "a.png"
    result = run("inspect", example_int8, "--plot", picture, "--stats", tmp_path / "ghost")
    check_refused(
        result,
        "the statistics belong to another checkpoint ('tiny')",
        "model.layers.0.self_attn.q_proj",
        "found none",
    )
    first = open_converted(example_int8).manifest.inputs[0].linears[0]
    narrow = make_stats(
        linears={first: (first,)}, inputs={first: make_stats().inputs["model.q"]}, normalised=()
    )
    write_stats(narrow, tmp_path / "narrow")
    result = run("inspect", example_int8, "--plot", picture, "--stats", tmp_path / "narrow")
    check_refused(result, first, "expected 256 channels, found 24")
    assert not picture.exists()


def test_names_that_matplotlib_would_read_as_formulas(example_int8: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(example_int8, tmp_path / "m")
    edit_json(
        folder / "int8conv.json", lambda m: m["source"].update(id="$\\frac$ \x1b[2J\u202e $x_{$")
    )
    drawn = succeed("inspect", folder, "--plot", tmp_path / "a.svg")
    assert drawn.stderr == ""
    assert "\x1b" not in (tmp_path / "a.svg").read_text()
