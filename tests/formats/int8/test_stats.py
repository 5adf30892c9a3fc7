"""The statistics file: written and read back, and one refusal for each way in which it can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from int8conv.errors import NotWritableError, SafetensorsError, StatsError
from int8conv.formats.int8.stats import InputStats, Stats, read_stats, write_stats


def make_stats(seed: int = 0, channels: int = 24, **changes: Any) -> Stats:
    rng = np.random.default_rng(seed)
    inputs = {
        path: InputStats(
            rng.random(count, np.float32), rng.integers(0, 99, count), rng.random((2, count)),
            rng.random((2, count)), np.full(count, 0.5, np.float32),
        )
        for path, count in (("model.q", channels), ("model.down", 7))
    }  # fmt: skip
    values: dict[str, Any] = {
        "source": "tiny", "fingerprint": "f" * 32, "texts": (("a" * 32, 128), (None, 64)), "context": 32,
        "linears": {"model.q": ("model.q", "model.k"), "model.down": ("model.down",)},
        "normalised": ("model.q",), "inputs": inputs,
    }  # fmt: skip
    return Stats(**values | changes)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "stats.safetensors"
    write_stats(make_stats(), path)
    return path


def test_it_reads_back(file: Path) -> None:
    stats, expected = read_stats(file), make_stats()
    assert stats.tokens == 192
    assert stats.random
    for field in fields(Stats):
        if field.name != "inputs":
            assert getattr(stats, field.name) == getattr(expected, field.name)
    for path, found in stats.inputs.items():
        for field in fields(InputStats):
            value, other = getattr(found, field.name), getattr(expected.inputs[path], field.name)
            np.testing.assert_array_equal(value, other)
            assert value.dtype == other.dtype


def test_any_safetensors_reader_opens_it(file: Path) -> None:
    tensors = load_file(file)
    np.testing.assert_array_equal(tensors["model.q.absmax"], make_stats().inputs["model.q"].absmax)
    assert len(tensors) == 10


def test_writing_again_gives_the_same_bytes(file: Path) -> None:
    before = file.read_bytes()
    write_stats(read_stats(file), file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotWritableError):
        write_stats(make_stats(), tmp_path / "absent" / "stats.safetensors")


def rewrite(
    file: Path,
    change: Callable[[dict[str, Any]], object] = lambda tensors: None,
    about: Callable[[dict[str, Any]], object] = lambda about: None,
    **metadata: str,
) -> None:
    with safe_open(file, "np") as opened:
        found = dict(opened.metadata())
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    fields_ = json.loads(found["stats"])
    about(fields_)
    change(tensors)
    save_file(tensors, file, found | {"stats": json.dumps(fields_)} | metadata)


@pytest.mark.rule("S1")
@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"format": "pt"}, "not a statistics file"),
        ({"version": "2"}, "unknown version"),
        ({"stats": "{"}, "malformed"),
        ({"stats": "[]"}, "malformed"),
        ({"stats": "{}"}, "malformed"),
    ],
)
def test_other_metadata(file: Path, metadata: dict[str, str], problem: str) -> None:
    rewrite(file, **metadata)
    with pytest.raises(StatsError, match=problem):
        read_stats(file)


@pytest.mark.rule("S1")
@pytest.mark.parametrize(
    "change",
    [
        {"context": 0},
        {"context": "32"},
        {"texts": [{"xxh3_128": 3, "tokens": 1}]},
        {"texts": [{"xxh3_128": None, "tokens": -1}]},
        {"texts": [{"tokens": 1}]},
        {"linears": ["model.q"]},
    ],
)
def test_malformed_fields(file: Path, change: dict[str, Any]) -> None:
    rewrite(file, about=lambda fields_: fields_.update(change))
    with pytest.raises(StatsError, match="malformed"):
        read_stats(file)


@pytest.mark.rule("S2")
@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        (lambda t: t.pop("model.q.large"), "model.q.large"),
        (lambda t: t.update({"model.q.squares": np.zeros((2, 23))}), "model.q.squares"),
        (lambda t: t.update({"model.q.absmax": np.zeros((24, 1), np.float32)}), "model.q.absmax"),
        (lambda t: t.update({"model.q.absmax": np.zeros(24)}), "model.q.absmax"),
        (lambda t: t.update({"model.o.absmax": np.zeros(24, np.float32)}), "model.o.absmax"),
    ],
    ids=["absent", "short", "two axes", "float64", "of no input"],
)
def test_wrong_tensors(file: Path, change: Callable[[dict[str, Any]], object], tensor: str) -> None:
    rewrite(file, change)
    with pytest.raises(StatsError) as caught:
        read_stats(file)
    assert caught.value.tensor == tensor


@pytest.mark.rule("S3")
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_values_that_no_magnitude_has(file: Path, value: float) -> None:
    rewrite(file, lambda tensors: tensors["model.down.fourths"].__setitem__((0, 3), value))
    with pytest.raises(StatsError, match="in channel 3") as caught:
        read_stats(file)
    assert caught.value.tensor == "model.down.fourths"


def test_a_file_that_is_cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(SafetensorsError):
        read_stats(file)
