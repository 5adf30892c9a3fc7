"""The section of ``config.json`` in vLLM: methods of layers, names, and what is refused. ``make test-vllm``."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from int8conv.errors import (  # fmt: skip
    ArgumentError,
    JsonFileError,
    UnknownVersionError,
    UnsupportedFeatureError,
)
from int8conv.vllm.config import Int8convConfig
from int8conv.vllm.linear import Int8convLinearMethod

ATTENTION = {"linears": ["m.0.q", "m.0.k", "m.0.v"], "outliers": 16, "dtype": "F16", "threshold": 6.0}  # fmt: skip
DOWN = {"linears": ["m.0.down"], "outliers": 0, "dtype": None, "threshold": 0.0}


def config(*groups: dict[str, Any], **fields: Any) -> Int8convConfig:
    found = Int8convConfig.from_config({"version": 1, "groups": list(groups), **fields})
    found.packed_modules_mapping = {"qkv": ["q", "k", "v"]}
    return found


def test_methods_of_layers() -> None:
    found = config(ATTENTION, DOWN, mode="w8a8")
    method = found._method("m.0.qkv", found.paths("m.0.qkv"), [found.groups[p] for p in found.paths("m.0.qkv")])  # fmt: skip
    assert isinstance(method, Int8convLinearMethod)
    assert (method.group.outliers, method.group.threshold, method.mode) == (16, 6.0, "w8a8")
    assert found.paths("m.0.down") == ["m.0.down"]
    assert isinstance(found._method("m.1.down", ["m.1.down"], [None]), UnquantizedLinearMethod)


def test_what_is_fused_must_be_alike() -> None:
    found = config(ATTENTION, DOWN)
    for parts, text in (
        ([found.groups["m.0.q"], None], "only some are int8"),
        ([found.groups["m.0.q"], found.groups["m.0.down"]], "outlier columns differ"),
    ):
        with pytest.raises(UnsupportedFeatureError, match=text):
            found._method("m.0.qkv", ["a", "b"], parts)


def test_malformed_sections() -> None:
    for section, error in (
        ({"version": 9}, UnknownVersionError),
        ({"version": 1}, JsonFileError),
        ({"version": 1, "groups": [], "mode": "fast"}, ArgumentError),
    ):
        with pytest.raises(error):
            Int8convConfig.from_config(section)
