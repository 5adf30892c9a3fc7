"""The manifest: written and read back, every field that is asked for, numbers and names that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from int8conv.errors import JsonFileError, NotFoundError, UnsafePathError
from int8conv.formats.int8.folder import open_converted
from int8conv.formats.int8.manifest import FileRecord, InputGroup, Manifest, read_manifest
from int8conv.formats.json_file import dump_json

from ..damage import MANIFEST, Json, edit_json, rejected
from ..source.test_index import UNSAFE_NAMES

SHARD = "model-00001-of-00001.safetensors"


@pytest.mark.parametrize("calibration", [None, {"tokens": 1024}])
@pytest.mark.parametrize("threshold", [None, 0.5, 3e38])
def test_what_is_written_is_read_back(
    tmp_path: Path, calibration: Json | None, threshold: float | None
) -> None:
    manifest = Manifest(
        generator="int8conv 9.9",
        source={"id": "m\u00fcnchen", "revision": None, "tensors": {}},
        options={"outliers": "none"},
        calibration=calibration,
        inputs=(InputGroup(("a.q", "a.k"), 64, 16, threshold),),
        rounded=7,
        skipped={"lm_head.weight": "tied"},
        files={
            "config.json": FileRecord(2, "0" * 32),
            SHARD: FileRecord(9, "1" * 32, 8, {"t": "2"}),
        },
    )
    (tmp_path / MANIFEST).write_bytes(dump_json(manifest.to_json()))
    assert read_manifest(tmp_path) == manifest


def test_a_folder_without_one(tmp_path: Path) -> None:
    with rejected(NotFoundError, str(tmp_path / MANIFEST)):
        read_manifest(tmp_path)


@pytest.mark.rule("F3")
@pytest.mark.parametrize(
    "field",
    [
        "format", "generator", "source", "options", "calibration", "inputs", "rounded", "skipped",
        "files",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", ["absent", True, "text", 1.5])
def test_a_field_that_is_absent_or_of_another_kind(
    converted: Path, field: str, value: object
) -> None:
    if field == "generator" and value == "text":
        return  # that is what it is

    def change(manifest: Json) -> None:
        manifest[field] = value
        if value == "absent":
            del manifest[field]

    edit_json(converted / MANIFEST, change)
    with rejected(JsonFileError, str(converted / MANIFEST), field):
        open_converted(converted)


@pytest.mark.rule("F3")
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("linears", [None, [], "q", [1], [None], {}]),
        ("in_features", [None, "256", 256.0, -256, True]),
        ("outliers", [None, "0", 0.0, -16, False]),
        ("threshold", ["5", -1, -1.0, True, [], 10**400, float("nan"), float("inf")]),
    ],
)
def test_a_group_that_is_malformed(converted: Path, field: str, values: list[object]) -> None:
    good = json.loads((converted / MANIFEST).read_text())
    for value in values:
        good["inputs"][1][field] = value
        (converted / MANIFEST).write_text(json.dumps(good))
        with rejected(JsonFileError, str(converted / MANIFEST)):
            open_converted(converted)
    del good["inputs"][1][field]
    (converted / MANIFEST).write_text(json.dumps(good))
    with rejected(JsonFileError, str(converted / MANIFEST), f"'{field}'"):
        open_converted(converted)


@pytest.mark.rule("F3")
@pytest.mark.parametrize("file", ["config.json", SHARD])
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("bytes", [None, "854", 854.0, -1, -(10**30), True]),
        ("xxh3_128", [None, 0, ["0" * 32]]),
    ],
)
def test_a_record_that_is_malformed(
    converted: Path, file: str, field: str, values: list[object]
) -> None:
    good = json.loads((converted / MANIFEST).read_text())
    for value in values:
        good["files"][file][field] = value
        (converted / MANIFEST).write_text(json.dumps(good))
        with rejected(JsonFileError, str(converted / MANIFEST), f"'{field}'"):
            open_converted(converted)
    del good["files"][file][field]
    (converted / MANIFEST).write_text(json.dumps(good))
    with rejected(JsonFileError, str(converted / MANIFEST), f"'{field}'"):
        open_converted(converted)


@pytest.mark.rule("F3")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("header_bytes", "absent"), ("header_bytes", None), ("header_bytes", "8"),
        ("header_bytes", -8), ("header_bytes", 8.0), ("tensors", None), ("tensors", []),
    ],
)  # fmt: skip
def test_a_record_of_a_shard_that_is_malformed(converted: Path, field: str, value: object) -> None:
    def change(manifest: Json) -> None:
        manifest["files"][SHARD][field] = value
        if value == "absent":
            del manifest["files"][SHARD][field]

    edit_json(converted / MANIFEST, change)
    with rejected(JsonFileError, str(converted / MANIFEST), f"'{field}'"):
        open_converted(converted)


@pytest.mark.rule("F3")
@pytest.mark.parametrize("value", [None, 1, "x", [], [{}], {"linears": ["q"]}])
def test_entries_of_another_kind(converted: Path, value: object) -> None:
    edit_json(converted / MANIFEST, lambda manifest: manifest["inputs"].append(value))
    with rejected(JsonFileError, str(converted / MANIFEST)):
        open_converted(converted)


@pytest.mark.rule("F3")
@pytest.mark.parametrize("value", [None, 1, "x", []])
def test_records_of_another_kind(converted: Path, value: object) -> None:
    edit_json(converted / MANIFEST, lambda manifest: manifest["files"].update({"a.txt": value}))
    with rejected(JsonFileError, str(converted / MANIFEST)):
        open_converted(converted)


@pytest.mark.rule("F3")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"rounded": 0', '"rounded": 0, "rounded": 1'),
        ('"bytes": 854', '"bytes": 1, "bytes": 854'),
        ('"rounded": 0', '"rounded": NaN'),
        ('"rounded": 0', '"rounded": ' + "9" * 5000),
        ('"in_features": 256', '"in_features": Infinity'),
        ('"generator": "', '"generator": "\\ud800'),
    ],
    ids=["twice", "twice within", "NaN", "5000 digits", "Infinity", "half a surrogate pair"],
)
def test_json_that_only_some_readers_take(converted: Path, old: str, new: str) -> None:
    text = (converted / MANIFEST).read_text()
    config_bytes = (converted / "config.json").stat().st_size
    old, new = (part.replace("854", str(config_bytes)) for part in (old, new))
    assert old in text
    (converted / MANIFEST).write_text(text.replace(old, new, 1))
    with rejected(JsonFileError, str(converted / MANIFEST)):
        open_converted(converted)


@pytest.mark.rule("F4")
@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_files_are_within_the_folder(converted: Path, name: str) -> None:
    def change(manifest: Json) -> None:
        manifest["files"][name] = manifest["files"]["config.json"]

    edit_json(converted / MANIFEST, change)
    with rejected(UnsafePathError, str(converted / MANIFEST)):
        open_converted(converted)
