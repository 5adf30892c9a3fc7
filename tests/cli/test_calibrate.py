"""``int8conv calibrate`` and ``convert --stats``: what they print, write and refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.stats import InputStats, read_stats, write_stats

from ..checkpoints import write_checkpoint
from .helpers import check_refused, run, snapshot, succeed

TEXT = (resources.files("int8conv.convert.outliers") / "calibration_text.txt").read_text()


@pytest.fixture(scope="module")
def stats(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the example on the built-in text; not to be changed."""
    out = tmp_path_factory.mktemp("stats") / "stats.safetensors"
    succeed("calibrate", example, "-o", out)
    return out


def test_what_it_prints(example: Path, tmp_path: Path) -> None:
    result = succeed("calibrate", example, "-o", tmp_path / "s", "--tokens", 256)
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        "input", "channels", "median", "largest", ">=", "6.0", "16-bit", "columns", "fallback", "from",
    ]  # fmt: skip
    assert len([line for line in lines if "model.layers." in line]) == 24
    assert lines[-1].startswith(f"{tmp_path / 's'}: 24 inputs over 256 tokens; ")
    assert result.stderr == ""


def test_json(example: Path, tmp_path: Path) -> None:
    result = succeed("calibrate", example, "-o", tmp_path / "s", "--tokens", 256, "--json")
    summary = json.loads(result.stdout)
    found = read_stats(tmp_path / "s")
    assert (summary["tokens"], summary["context"]) == (256, 256)
    assert summary["fingerprint"] == found.fingerprint
    path = "model.layers.2.mlp.down_proj"
    absmax = found.inputs[path].absmax
    assert summary["inputs"][path]["absmax"] == pytest.approx(float(absmax.max()))
    assert summary["inputs"][path]["median_absmax"] == pytest.approx(float(np.median(absmax)))
    assert (summary["inputs"][path]["columns"], summary["inputs"][path]["threshold"]) == (16, 0.0)


def test_converting_with_stats_equals_the_built_in_calibration(
    example: Path, example_int8: Path, stats: Path, tmp_path: Path
) -> None:
    succeed("convert", example, tmp_path / "out", "--stats", stats)
    assert snapshot(tmp_path / "out") == snapshot(example_int8)


def test_merged_halves_convert_as_the_whole(example: Path, tmp_path: Path) -> None:
    lines = TEXT.splitlines(keepends=True)
    for name, part in (("a", lines[:25]), ("b", lines[25:])):
        (tmp_path / f"{name}.txt").write_text("".join(part))
        succeed(
            "calibrate",
            example,
            "-o",
            tmp_path / name,
            "--text",
            tmp_path / f"{name}.txt",
            "--context",
            64,
        )
    both = ["--text", tmp_path / "a.txt", "--text", tmp_path / "b.txt", "--context", 64]
    succeed("calibrate", example, "-o", tmp_path / "whole", *both)
    succeed("calibrate", "--merge", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "merged")
    assert (tmp_path / "merged").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.rule("S4")
def test_stats_of_another_checkpoint(stats: Path, source: Path, tmp_path: Path) -> None:
    result = run("convert", source, tmp_path / "out", "--stats", stats)
    check_refused(result, stats, "another checkpoint ('small-llama')", "fingerprint")
    assert not (tmp_path / "out").exists()


def test_stats_of_other_channels(example: Path, stats: Path, tmp_path: Path) -> None:
    """The right checkpoint by its fingerprint, but arrays of another length, or none."""
    found = read_stats(stats)
    path = "model.layers.2.mlp.down_proj"
    whole = found.inputs[path]
    short = InputStats(
        whole.absmax[:-1], whole.large[:-1], whole.squares[:, :-1], whole.fourths[:, :-1], whole.weight_error[:-1]
    )  # fmt: skip
    write_stats(replace(found, inputs=found.inputs | {path: short}), tmp_path / "short")
    result = run("convert", example, tmp_path / "out", "--stats", tmp_path / "short")
    check_refused(result, f"{path}.absmax", "expected 704, found 703")
    inputs = {p: i for p, i in found.inputs.items() if p != path}
    linears = {p: i for p, i in found.linears.items() if p != path}
    write_stats(replace(found, inputs=inputs, linears=linears), tmp_path / "absent")
    result = run("convert", example, tmp_path / "out", "--stats", tmp_path / "absent")
    check_refused(result, f"{path}.absmax", "expected 704")
    assert not (tmp_path / "out").exists()


def test_stats_that_are_none(example: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_refused(run("convert", example, out, "--stats", tmp_path / "absent"), "absent")
    shard = example / "model.safetensors"
    check_refused(run("convert", example, out, "--stats", shard), shard, "not a statistics file")
    check_refused(
        run("convert", example, out, "--outliers", "none", "--stats", shard), "statistics"
    )
    assert not out.exists()


def test_rules_change_what_is_kept(example: Path, stats: Path, tmp_path: Path) -> None:
    def columns(name: str, *options: object) -> int:
        out = tmp_path / name
        succeed("convert", example, out, "--stats", stats, *options)
        return sum(group.outliers for group in open_converted(out).manifest.inputs)

    assert columns("default") == 24 * 16
    assert columns("none", "--max-outliers", 0) == 0
    assert columns("half", "--max-outliers", 0.5, "--outlier-rule", "error") == 6 * (3 * 128 + 352)
    assert columns("paper", "--outlier-rule", "paper") <= 12 * 16
    thresholds = [g.threshold for g in open_converted(tmp_path / "none").manifest.inputs]
    assert None not in thresholds


def test_wrong_usage(example: Path, tmp_path: Path, stats: Path) -> None:
    out = tmp_path / "out"
    for arguments in (
        (example,),
        (example, example, "-o", out),
        ("--merge", stats, stats, "-o", out, "--tokens", 5),
        (example, "-o", out, "--tokens", 0),
        (example, "-o", out, "--context", 1),
    ):
        assert run("calibrate", *arguments).exit_code == 2, arguments
    check_refused(run("calibrate", "--merge", stats, "-o", out), "two statistics files or more")
    check_refused(run("calibrate", example, "-o", out, "--device", "abacus"), "device", "abacus")
    check_refused(
        run("calibrate", example, "-o", tmp_path / "no" / "file", "--tokens", 9), "no/file"
    )
    assert not out.exists()


def test_models_that_the_runtime_does_not_know(source: Path, tmp_path: Path) -> None:
    write_checkpoint(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "unknown"}))
    check_refused(run("calibrate", source, "-o", tmp_path / "s"), "unknown model_type 'unknown'")
