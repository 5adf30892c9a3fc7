"""What configs of old and new releases say of a rotary embedding, read field by field."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from int8conv.errors import JsonFileError, UnsupportedFeatureError
from int8conv.runtime.models.config import Rope
from int8conv.runtime.models.raw_config import RawConfig
from int8conv.runtime.models.rope import context, read_rope

POSITIONS = {"max_position_embeddings": 4096}
LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}
FACTORS = {"short_factor": [1.0, 1.5], "long_factor": [2, 3.5]}


def read(values: dict[str, Any], **options: Any) -> Rope:
    return read_rope(RawConfig(POSITIONS | values, "config.json"), **options)


def scaled(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_scaling": {"type": kind, **values}}


def test_without_a_word_it_is_the_plain_one() -> None:
    assert read({}) == Rope(10000.0)
    assert read({}, theta=5e5) == Rope(5e5)
    assert read({"rope_theta": None, "rope_scaling": None}) == Rope(10000.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rope_theta": 250000}, Rope(250000.0)),
        (scaled("linear", factor=4), Rope(10000.0, "linear", factor=4.0)),
        (
            scaled("dynamic", factor=2.5, original_max_position_embeddings=7),
            Rope(10000.0, "dynamic", factor=2.5, original_positions=4096),
        ),
        (
            scaled("llama3", **LLAMA3),
            Rope(10000.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192.0),
        ),
        (
            scaled("yarn", **YARN, beta_fast=16, beta_slow=2, truncate=True, mscale=0, mscale_all_dim=None),
            Rope(10000.0, "yarn", factor=4.0, original_positions=1024.0, beta_fast=16.0, beta_slow=2.0,
                 magnitude=0.1 * math.log(4) + 1),
        ),
        (scaled("yarn", **YARN | {"factor": 0.5}), Rope(10000.0, "yarn", factor=0.5, original_positions=1024.0)),
        (
            scaled("yarn", **YARN, attention_factor=1.25, truncate=False),
            Rope(10000.0, "yarn", factor=4.0, original_positions=1024.0, magnitude=1.25, truncated=False),
        ),
    ],
)  # fmt: skip
def test_every_field_is_taken(values: dict[str, Any], expected: Rope) -> None:
    """By the keys of old releases, and by those of new ones."""
    assert read(values) == expected
    section = values.get("rope_scaling", {})
    new = {"rope_parameters": {**section, "rope_theta": 5e5}}
    if "type" in section:
        new["rope_parameters"]["rope_type"] = new["rope_parameters"].pop("type")
        assert read(new) == replace(expected, theta=5e5)


@pytest.mark.parametrize("kind", ["longrope", "su"])
@pytest.mark.parametrize("outside", [True, False])
def test_longrope_has_factors_of_each_frequency(kind: str, outside: bool) -> None:
    """Its context before scaling stands in the section or, in older configs, outside of it."""
    original = {"original_max_position_embeddings": 1024}
    values = scaled(kind, **FACTORS, **({} if outside else original)) | (
        original if outside else {}
    )
    expected = Rope(
        10000.0, "longrope", original_positions=1024.0, short_factors=(1.0, 1.5), long_factors=(2.0, 3.5),
        magnitude=math.sqrt(1 + math.log(4) / math.log(1024)),
    )  # fmt: skip
    assert read(values) == expected


def test_longropes_magnitude_is_of_its_factor_or_as_it_says() -> None:
    base = FACTORS | {"original_max_position_embeddings": 1024}
    stretched = read(scaled("longrope", **base, factor=16)).magnitude
    assert stretched == math.sqrt(1 + math.log(16) / math.log(1024))
    assert read(scaled("longrope", **base, attention_factor=1.5)).magnitude == 1.5
    same = base | {"original_max_position_embeddings": 4096}
    assert read(scaled("longrope", **same)).magnitude == 1.0


def test_a_part_of_the_channels() -> None:
    """By the key of either release; a family that rotates all may say so, and nothing else."""
    assert read({}, fraction=0.25) == read({"rotary_pct": 0.25}, fraction=1.0)
    assert read({"partial_rotary_factor": 0.5}, fraction=1.0) == read({}, fraction=0.5)
    new = {"rope_parameters": {"partial_rotary_factor": 0.5}}
    assert read(new, fraction=1.0) == read({}, fraction=0.5)
    assert read({"rope_parameters": {"partial_rotary_factor": 1.0}}) == Rope(10000.0)
    with pytest.raises(UnsupportedFeatureError, match=r"rope_parameters\.partial_rotary_factor"):
        read(new)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": True}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_parameters": {"rope_theta": -1}}, r"rope_parameters\.rope_theta"),
        (scaled("linear"), r"rope_scaling\.factor"),
        (scaled("linear", factor="2"), r"rope_scaling\.factor"),
        (scaled("linear", factor=float("nan")), r"rope_scaling\.factor"),
        *((scaled("llama3", **LLAMA3 | {key: None}), rf"rope_scaling\.{key}") for key in LLAMA3),
        *((scaled("yarn", **YARN | {key: None}), rf"rope_scaling\.{key}") for key in YARN),
        (scaled("yarn", **YARN, beta_fast=0), r"rope_scaling\.beta_fast"),
        (scaled("yarn", **YARN, attention_factor=0), r"rope_scaling\.attention_factor"),
        (scaled("longrope", **FACTORS), r"rope_scaling\.original_max_position_embeddings"),
        (
            scaled("longrope", original_max_position_embeddings=9, long_factor=[1]),
            r"rope_scaling\.short_factor",
        ),
        (
            scaled(
                "longrope", original_max_position_embeddings=9, short_factor=[1], long_factor=[]
            ),
            r"rope_scaling\.long_factor",
        ),
        (
            scaled(
                "longrope", original_max_position_embeddings=9, short_factor=[0], long_factor=[1]
            ),
            r"rope_scaling\.short_factor",
        ),
    ],
)
def test_malformed_keys_are_named(values: dict[str, Any], key: str) -> None:
    with pytest.raises(JsonFileError, match=f"config.json: config key '{key}'"):
        read(values)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (scaled("ntk", factor=2.0), r"rope_scaling\.type"),
        ({"rope_parameters": {"rope_type": 5}}, r"rope_parameters\.rope_type"),
        (scaled("default", factor=2.0), r"rope_scaling\.factor"),
        (scaled("linear", factor=2.0, beta_slow=1), r"rope_scaling\.beta_slow"),
        (scaled("yarn", **YARN, mscale=1.0), r"rope_scaling\.mscale"),
        (scaled("yarn", **YARN, mscale_all_dim=1.0), r"rope_scaling\.mscale"),
    ],
)
def test_what_is_not_known_is_refused_by_name(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedFeatureError, match=key):
        read(values)


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        (Rope(1e4), 4096),
        (Rope(1e4, "linear", factor=4.0), 4096),
        (Rope(1e4, "dynamic", factor=2.5, original_positions=4096), 10240),
        (Rope(1e4, "yarn", factor=8.0, original_positions=1024), 8192),
        (Rope(1e4, "yarn", factor=2.0, original_positions=1024), 4096),
        (Rope(1e4, "llama3", factor=8.0, original_positions=8192), 4096),
    ],
)
def test_positions_that_a_model_of_4096_takes(rope: Rope, positions: int) -> None:
    assert context(rope, 4096) == positions
