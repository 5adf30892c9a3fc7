"""``quantization_config``: the groups that it tells, written and read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from int8conv.errors import JsonFileError
from int8conv.formats.int8 import section
from int8conv.formats.int8.manifest import InputGroup
from int8conv.formats.int8.section import Group, describe_groups, dump_config, read_groups

GROUPS = [Group(("a.q", "a.k"), 16, "BF16", 5.25), Group(("a.ö",), 0, None, None)]
GOOD = {"linears": ["a"], "outliers": 16, "dtype": "F16", "threshold": 0}


def test_what_is_written_is_read_again() -> None:
    config = {"model_type": "x", "quantization_config": {"quant_method": "fp8"}, "n": [1]}
    text = dump_config(config, "none", "bfloat16", GROUPS).decode()
    assert '      {"linears": ["a.ö"], "outliers": 0, "dtype": null, "threshold": null}\n' in text
    written = json.loads(text)
    assert list(written) == ["model_type", "n", "quantization_config"]
    found = written.pop("quantization_config")
    assert read_groups(found, "f") == tuple(GROUPS)
    del found["groups"]
    assert found == {"quant_method": "int8conv", "version": 1, "outliers": "none", "dtype": "bfloat16"}  # fmt: skip
    assert read_groups(found, "f") is None
    assert json.loads(dump_config({}, "none", "float16", []))["quantization_config"]["groups"] == []


def test_groups_are_those_of_the_manifest_with_the_dtype_of_their_columns() -> None:
    inputs = [InputGroup(group.linears, 64, group.outliers, group.threshold) for group in GROUPS]
    assert describe_groups(inputs, {"a.q.outlier_weight": "BF16"}) == GROUPS


def test_too_many_groups_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(section, "_MOST_GROUP_BYTES", 20)
    assert "groups" not in json.loads(dump_config({}, "none", "float16", GROUPS))["quantization_config"]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("linears", []), ("linears", "a"), ("linears", [1]), ("outliers", -1), ("outliers", True), ("outliers", 1.0),
        ("dtype", None), ("dtype", "F32"), ("threshold", -0.5), ("threshold", float("inf")), ("threshold", "1"),
    ],
)  # fmt: skip
def test_malformed_groups(field: str, value: Any) -> None:
    assert read_groups({"groups": [GOOD]}, "f") == (Group(("a",), 16, "F16", 0.0),)
    for group in (GOOD | {field: value}, {k: v for k, v in GOOD.items() if k != field}):
        with pytest.raises(JsonFileError, match=f"^f: field '{field}' of a group"):
            read_groups({"groups": [group]}, "f")
    for groups in ({}, None, "x"):
        with pytest.raises(JsonFileError, match="is not a list"):
            read_groups({"groups": groups}, "f")


def test_a_group_that_is_no_object() -> None:
    with pytest.raises(JsonFileError, match="of a group"):
        read_groups({"groups": [[]]}, "f")
