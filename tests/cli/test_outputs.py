"""Commands that write: whatever the output is called, what is not theirs stays as it was."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ..formats.damage import MANIFEST
from .helpers import check_refused, edit_json, run, snapshot, succeed


@pytest.fixture
def box(source: Path, tmp_path: Path) -> Path:
    """A folder that holds a source, and something else."""
    box = tmp_path / "box"
    shutil.copytree(source, box / "m")
    (box / "thesis.txt").write_text("the only copy")
    return box


def test_convert_never_replaces_its_source(box: Path) -> None:
    (box / "m" / MANIFEST).write_text("{}")  # which made --force take it for a converted folder
    (box / MANIFEST).write_text("{}")
    before = snapshot(box.parent)
    for out in (box / "m", box, box / "m" / "..", box / "m" / "model.safetensors" / "out"):
        for force in ([], ["--force"]):
            check_refused(run("convert", box / "m", out, "--outliers", "none", *force), out)
    assert snapshot(box.parent) == before


def test_force_replaces_a_converted_folder_and_nothing_beside_it(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    succeed("convert", source, out, "--outliers", "none")
    succeed("convert", source, out, "--outliers", "none", "--force")
    (out / "README.md").write_text("the only copy")
    before = snapshot(tmp_path)
    refused = run("convert", source, out, "--outliers", "none", "--force")
    check_refused(refused, out, "README.md", "move them elsewhere")
    assert snapshot(tmp_path) == before
    (out / "README.md").unlink()
    edit_json(out / MANIFEST, lambda manifest: manifest.pop("files"))
    check_refused(run("convert", source, out, "--outliers", "none", "--force"), out)


@pytest.mark.parametrize("link", ["itself", "symbolic", "hard", "relative", "dots"])
def test_calibrate_never_replaces_weights(
    source: Path, tmp_path: Path, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, out = source / "model.safetensors", tmp_path / "stats.safetensors"
    if link == "symbolic":
        out.symlink_to(weights)
    elif link == "hard":
        out.hardlink_to(weights)
    elif link == "relative":
        monkeypatch.chdir(tmp_path)
        out = Path(os.path.relpath(weights))
    else:
        out = weights if link == "itself" else source / ".." / source.name / weights.name
    before = snapshot(tmp_path)
    check_refused(run("calibrate", source, "-o", out), out, "is not replaced")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "new.safetensors"])
def test_calibrate_makes_nothing_that_counts_as_a_part_of_its_source(
    source: Path, tmp_path: Path, name: str
) -> None:
    (source / "model.safetensors").rename(source / "weights.safetensors")
    before = snapshot(tmp_path)
    check_refused(run("calibrate", source, "-o", source / name), source / name)
    assert snapshot(tmp_path) == before


def test_merge_never_replaces_what_it_merges(source: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    succeed("calibrate", source, "-o", a)
    shutil.copy(a, b)
    before = snapshot(tmp_path)
    check_refused(run("calibrate", "--merge", a, b, "-o", b), b, "output is the source")
    assert snapshot(tmp_path) == before
    succeed("calibrate", "--merge", a, b, "-o", tmp_path / "c.safetensors")
    succeed("calibrate", source, "-o", tmp_path / "c.safetensors")  # of its kind


def test_a_picture_replaces_pictures_alone(converted: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (theirs := tmp_path / "theirs.png").write_text("the only copy")
    (tmp_path / "link.png").symlink_to("theirs.png")
    for path in (theirs, tmp_path / "link.png"):
        check_refused(run("inspect", converted, "--plot", path), path, "is not replaced")
    assert theirs.read_text() == "the only copy"
    for _ in range(2):
        succeed("inspect", converted, "--plot", tmp_path / "map.svg")
    assert (tmp_path / "map.svg").read_text().startswith("<?xml")
