"""JSON files: what is none, what has no end, and what would take memory without end."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from int8conv.errors import JsonFileError, NotFoundError
from int8conv.formats.json_file import DEEPEST, SETTINGS, Limit, read_json, read_optional_json


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def test_an_object(path: Path) -> None:
    path.write_text('{"a": [1, {"b": null}], "ä": "\\u00e4"}')
    assert read_json(path) == {"a": [1, {"b": None}], "ä": "ä"}
    assert read_json(path, strict=True) == read_optional_json(path) == read_json(path)


def test_one_that_need_not_be_there(path: Path) -> None:
    assert read_optional_json(path) == {}
    with pytest.raises(NotFoundError, match="cannot be read: No such file"):
        read_json(path)
    path.symlink_to("nowhere")
    with pytest.raises(NotFoundError, match="cannot be read: No such file"):
        read_optional_json(path)


@pytest.mark.parametrize(
    "text", ["", "{", "{'a': 1}", "[1]", "null", "1", '"a"', '{"a": 1}x', '{"a": "\\ud800"}', '{"a": ' + "1" * 5000 + "}"],
)  # fmt: skip
def test_what_is_no_object(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(JsonFileError, match=r"not JSON: |: expected an object"):
        read_json(path)


def test_what_only_some_accept(path: Path) -> None:
    for text in ('{"a": 1, "a": 2}', '{"a": NaN}', '{"a": -Infinity}'):
        path.write_text(text)
        assert "a" in read_json(path)
        with pytest.raises(JsonFileError, match=r"not JSON: |: expected an object"):
            read_json(path, strict=True)


def test_no_regular_file(path: Path) -> None:
    """Nobody writes to the FIFO, and the device has no end."""
    os.mkfifo(path)
    for _ in range(2):
        with pytest.raises(NotFoundError, match="not a regular file"):
            read_json(path)
        with pytest.raises(NotFoundError, match="not a regular file"):
            read_optional_json(path)
        path.unlink()
        path.symlink_to("/dev/zero")
    path.unlink()
    path.mkdir()
    with pytest.raises(NotFoundError):
        read_json(path)


def test_more_bytes_than_such_a_file_has(path: Path) -> None:
    text = '{"a": "' + "x" * 100 + '"}'
    path.write_text(text)
    assert read_json(path, limit=Limit(len(text), 10)) == json.loads(text)
    with pytest.raises(JsonFileError, match=f"too large.*expected at most {len(text) - 1} bytes"):
        read_json(path, limit=Limit(len(text) - 1, 10))
    with path.open("wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(JsonFileError, match="the file is too large"):
            read_json(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20  # nothing of it is read
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", ["{}", "[]", '""', "0", '{"":[]}'])
def test_more_values_than_such_a_file_has(path: Path, value: str) -> None:
    """Counted before one is made."""
    path.write_text('{"a": [' + ",".join([value] * 2_000_000) + "]}")
    tracemalloc.start()
    try:
        with pytest.raises(JsonFileError, match=r"values, at most 1,048,576 are allowed"):
            read_json(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * SETTINGS.nbytes
    finally:
        tracemalloc.stop()
    path.write_text('{"a": [' + ",".join([value] * 1000) + "]}")
    assert len(read_json(path)["a"]) == 1000


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_values_within_each_other(path: Path, opened: str) -> None:
    closed = {"[": "]"}.get(opened, "}")

    def write(depth: int) -> None:
        path.write_text('{"a": ' + opened * depth + "0" + closed * depth + "}")

    write(DEEPEST - 1)
    assert read_json(path)
    for depth in (DEEPEST, 900, 10**5):
        write(depth)
        with pytest.raises(JsonFileError, match="not JSON: "):
            read_json(path)
