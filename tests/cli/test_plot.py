"""``inspect --plot``: what is drawn, from which figures, and what it refuses."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import int8conv
from int8conv.convert.outliers.figures import binned, expected_errors, outlier_map
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.stats import read_stats, write_stats
from int8conv.formats.safetensors.stored import read_array

from ..formats.int8.test_stats import make_stats
from .helpers import check_refused, edit_json, run, succeed

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


def test_the_map_without_statistics(example_int8: Path) -> None:
    """Kept columns by their largest weight, and nothing else."""
    converted = open_converted(example_int8)
    group = converted.manifest.inputs[0]
    values = outlier_map([group], converted, None)
    linear = [converted.linears[path] for path in group.linears]
    assert linear[0].outlier_index is not None
    columns = read_array(linear[0].outlier_index)
    assert np.flatnonzero(np.isfinite(values[0])).tolist() == columns.tolist()
    largest = [np.abs(read_array(x.outlier_weight)).max(axis=0) for x in linear if x.outlier_weight]
    np.testing.assert_allclose(values[0, columns], np.max(largest, axis=0), rtol=1e-6)


def test_the_map_with_statistics(example: Path, example_int8: Path, tmp_path: Path) -> None:
    succeed("calibrate", example, "-o", tmp_path / "s", "--tokens", 256)
    stats, converted = read_stats(tmp_path / "s"), open_converted(example_int8)
    group = converted.manifest.inputs[3]
    values = outlier_map([group], converted, stats)
    np.testing.assert_array_equal(values[0], stats.inputs[group.linears[0]].absmax)


def test_bins_show_the_largest() -> None:
    values = np.array([[1.0, np.nan, 9.0, 2.0, 3.0]])
    assert binned(values, 3).tolist() == [[1.0, 9.0, 3.0]]
    assert binned(values, 5).tolist()[0][2] == 9.0


def test_expected_errors_are_near_measured_ones(example: Path, example_int8: Path) -> None:
    from int8conv.convert.quality import compare_tensors
    from int8conv.formats.hub.download import resolve

    converted = open_converted(example_int8)
    expected = expected_errors(converted)
    for quality in compare_tensors(converted, resolve(str(example))).linears:
        assert quality.sqnr_db is not None
        measured = 10 ** (-quality.sqnr_db / 20)
        assert expected[quality.name.removesuffix(".weight")] == pytest.approx(measured, rel=0.05)


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
