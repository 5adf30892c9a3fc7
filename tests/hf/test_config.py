"""``quantization_config`` in the hands of transformers."""

from __future__ import annotations

from typing import Any

import pytest

from int8conv.errors import ArgumentError, UnknownVersionError
from int8conv.hf import Int8convConfig

GROUPS: list[dict[str, Any]] = [{"linears": ["a"], "outliers": 0, "dtype": None, "threshold": None}]
SECTION: dict[str, Any] = {
    "quant_method": "int8conv", "version": 1, "outliers": "none", "dtype": "float16", "groups": GROUPS,
}  # fmt: skip


def test_it_is_written_as_it_was_read() -> None:
    config = Int8convConfig.from_dict(dict(SECTION))
    assert config.to_dict() == SECTION
    assert list(config.to_dict())[-1] == "groups"
    assert Int8convConfig.from_dict(SECTION | {"later": [1]}).to_dict() == SECTION | {"later": [1]}
    assert Int8convConfig.from_dict(SECTION | {"mode": "w8a8"}).to_dict()["mode"] == "w8a8"
    assert "groups" not in Int8convConfig().to_dict()


def test_what_it_refuses() -> None:
    with pytest.raises(UnknownVersionError, match="quantization_config: unknown format version"):
        Int8convConfig(version=2)
    with pytest.raises(ArgumentError, match="mode: expected w8a8 or w8a16, found 'w4a16'"):
        Int8convConfig(mode="w4a16")  # type: ignore[arg-type]
