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


WRONG: list[object] = [
    None,
    True,
    0,
    -1,
    1.5,
    2**70,
    "",
    "x",
    "f" * 31,
    "F" * 32,
    [],
    [1],
    ["model.q", 1],
    {},
    {"a": 1},
    [[]],
]
FITTING: dict[str, list[object]] = {
    "source": ["", "x", "f" * 31, "F" * 32],
    "normalised": [[]],
}
"""Of those, which a field may well have."""


@pytest.mark.rule("S1")
@pytest.mark.parametrize(
    "field", ["source", "fingerprint", "context", "texts", "linears", "normalised"]
)
def test_each_field_has_one_type(file: Path, field: str) -> None:
    whole = file.read_bytes()
    rewrite(file, about=lambda fields_: fields_.pop(field))
    with pytest.raises(StatsError, match=f"malformed: '{field}' is missing"):
        read_stats(file)
    for value in WRONG:
        if value in FITTING.get(field, []):
            continue
        file.write_bytes(whole)
        rewrite(file, about=lambda fields_, value=value: fields_.update({field: value}))
        with pytest.raises(StatsError, match=r"malformed|belongs to no input"):
            read_stats(file)


@pytest.mark.rule("S1")
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"texts": [{"xxh3_128": 3, "tokens": 1}]}, "'xxh3_128' is not 32 hexadecimal digits or null: 3"),
        ({"texts": [{"xxh3_128": "abc", "tokens": 1}]}, "'xxh3_128' is not"),
        ({"texts": [{"xxh3_128": None, "tokens": -1}]}, "'tokens' is not a number of tokens: -1"),
        ({"texts": [{"xxh3_128": None, "tokens": True}]}, "'tokens' is not a number of tokens: True"),
        ({"texts": [{"xxh3_128": None, "tokens": 10**400}]}, "'tokens' is not a number of tokens: 1000"),
        ({"texts": [{"tokens": 1}]}, "'texts' has a malformed entry"),
        ({"texts": [{"xxh3_128": None}]}, "'texts' has a malformed entry"),
        ({"texts": [["a" * 32, 1]]}, "'texts' has a malformed entry"),
        ({"texts": []}, "'texts' is empty"),
        ({"texts": "ab"}, "'texts' is not a list"),
        ({"context": 2**63}, "'context' is not a number of tokens"),
        ({"context": 2**50 + 1}, "'context' is not a number of tokens"),
        ({"context": 0}, "'context' is not a number of tokens"),
        ({"texts": [{"xxh3_128": None, "tokens": 2**50 + 1}]}, "'tokens' is not a number of tokens"),
        ({"texts": [{"xxh3_128": None, "tokens": 0}]}, "'tokens' is not a number of tokens"),
        ({"fingerprint": "F" * 32}, "'fingerprint' is not 32 hexadecimal digits"),
        ({"linears": {"model.q": "model.q", "model.down": ["model.down"]}}, "not a list of strings: 'model.q'"),
        ({"linears": {"model.q": [], "model.down": ["model.down"]}}, "does not begin with it"),
        ({"linears": {"model.q": ["model.k", "model.q"], "model.down": ["model.down"]}}, "does not begin with it"),
        ({"linears": {"model.q": ["model.q", 3], "model.down": ["model.down"]}}, "not a list of strings"),
        ({"linears": {"model.q": ["model.q", "model.q"], "model.down": ["model.down"]}}, "twice"),
        ({"linears": {"model.q": ["model.q", "model.down"], "model.down": ["model.down"]}}, "twice"),
        ({"normalised": ["model.ghost"]}, "'normalised' names no input: 'model.ghost'"),
        ({"normalised": ["model.k"]}, "'normalised' names no input: 'model.k'"),
        ({"normalised": ["model.q", "model.q"]}, "'normalised' names an input twice"),
        ({"normalised": "model.q"}, "'normalised' is not a list"),
    ],
)  # fmt: skip
def test_malformed_fields(file: Path, change: dict[str, Any], problem: str) -> None:
    rewrite(file, about=lambda fields_: fields_.update(change))
    with pytest.raises(StatsError, match="field 'stats' of the metadata is malformed") as caught:
        read_stats(file)
    assert problem in str(caught.value)


@pytest.mark.rule("S1")
def test_the_largest_counts_and_no_norms_are_taken(file: Path) -> None:
    most = {"context": 2**50, "texts": [{"xxh3_128": None, "tokens": 2**50}], "normalised": []}
    rewrite(file, about=lambda fields_: fields_.update(most))
    stats = read_stats(file)
    assert (stats.context, stats.texts, stats.normalised) == (2**50, ((None, 2**50),), ())


@pytest.mark.rule("S1")
@pytest.mark.parametrize(
    "text", ['{"context": 1, "context": 1}', "[" * 10**6, "[" + "0," * 9 * 2**20 + "0]", "1" * 5000, "null", '"text"'],
    ids=["twice", "deep", "9 million values", "5,000 digits", "null", "text"],
)  # fmt: skip
def test_metadata_that_is_no_object(file: Path, text: str) -> None:
    rewrite(file, stats=text)
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


@pytest.mark.rule("S2")
@pytest.mark.parametrize("kind", ["absmax", "large", "squares", "fourths", "weight_error"])
def test_each_tensor_has_one_dtype_and_shape(file: Path, kind: str) -> None:
    name, whole = f"model.q.{kind}", file.read_bytes()
    good = load_file(file)[name]
    others = [
        t for t in (np.float16, np.float32, np.float64, np.int32, np.int64) if t != good.dtype
    ]
    wrong = [good.astype(dtype) for dtype in others]
    wrong += [good[..., :23], good[None], np.zeros((), good.dtype), np.zeros((3, 24), good.dtype)]
    for array in wrong:
        file.write_bytes(whole)
        rewrite(
            file, lambda tensors, array=array: tensors.update({name: np.ascontiguousarray(array)})
        )
        with pytest.raises(StatsError):
            read_stats(file)
    file.write_bytes(whole)
    rewrite(file, lambda tensors: tensors.pop(name))
    with pytest.raises(StatsError, match="missing") as caught:
        read_stats(file)
    assert caught.value.tensor == name


@pytest.mark.rule("S2")
def test_an_input_wider_than_any(file: Path) -> None:
    """A sparse file claims it for nothing; it is refused before it is read."""
    channels = 2**22 + 1
    header = {
        "__metadata__": {"format": "int8conv stats", "version": "1", "stats": json.dumps(
            {"source": "", "fingerprint": "f" * 32, "context": 1, "texts": [{"xxh3_128": None, "tokens": 1}], "linears": {"a": ["a"]}, "normalised": []})},
        "a.absmax": {"dtype": "F32", "shape": [channels], "data_offsets": [0, 4 * channels]},
    }  # fmt: skip
    text = json.dumps(header).encode()
    with file.open("wb") as sparse:
        sparse.write(len(text).to_bytes(8, "little") + text)
        sparse.truncate(8 + len(text) + 4 * channels)
    with pytest.raises(StatsError, match="more channels than an input has: expected at most 4194304, found 4194305"):  # fmt: skip
        read_stats(file)


@pytest.mark.rule("S3")
@pytest.mark.parametrize("kind", ["absmax", "squares", "fourths", "weight_error"])
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf])
def test_no_number_of_any_kind_is_negative_or_infinite(file: Path, kind: str, value: float) -> None:
    name = f"model.q.{kind}"
    rewrite(file, lambda tensors: tensors[name].__setitem__((..., 5), value))
    with pytest.raises(StatsError, match="in channel 5") as caught:
        read_stats(file)
    assert caught.value.tensor == name


@pytest.mark.rule("S3")
def test_a_count_is_not_negative_but_what_a_sum_leaves_out_may_be(file: Path) -> None:
    rewrite(file, lambda tensors: tensors["model.q.squares"].__setitem__((1, 2), -1e-18))
    assert read_stats(file).inputs["model.q"].squares[1, 2] == -1e-18
    rewrite(file, lambda tensors: tensors["model.q.large"].__setitem__(4, 2**50))
    assert read_stats(file).inputs["model.q"].large[4] == 2**50
    for wrong in (-1, 2**50 + 1, 2**63 - 1):
        rewrite(file, lambda tensors, wrong=wrong: tensors["model.q.large"].__setitem__(4, wrong))
        with pytest.raises(StatsError, match="in channel 4"):
            read_stats(file)


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
