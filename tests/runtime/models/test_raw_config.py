"""What a config may say: numbers that arithmetic can be done with, and no more layers and experts than can be listed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from int8conv.errors import Int8convError, JsonFileError, UnsupportedFeatureError
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.families import FAMILIES
from int8conv.runtime.models.raw_config import RawConfig
from int8conv.runtime.models.rope import context, read_rope

from ...checkpoints import LLAMA, OPT

MOE = LLAMA | {
    "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "an integer > 0"), (-1, "an integer > 0"), (True, "an integer > 0"), (1.5, "an integer > 0"), ("64", "an integer > 0"),
        ([64], "an integer > 0"), ({}, "an integer > 0"), (2**40 + 1, "at most 1,099,511,627,776"), (10**400, "at most 1,099,511,627,776"),
    ],
)  # fmt: skip
def test_integers(value: object, expected: str) -> None:
    with pytest.raises(JsonFileError) as caught:
        RawConfig({"hidden_size": value}).integer("hidden_size")
    assert "config key 'hidden_size'" in str(caught.value)
    assert caught.value.expected == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "a number > 0"), (-1.0, "a number > 0"), (True, "a number > 0"), ("1", "a number > 0"), ([1], "a number > 0"),
        (float("nan"), "a number > 0"), (float("-inf"), "a number > 0"), (float("inf"), "1e-30 to 1e+30"), (10**400, "1e-30 to 1e+30"),
        (5e-324, "1e-30 to 1e+30"), (1e31, "1e-30 to 1e+30"),
    ],
)  # fmt: skip
def test_numbers(value: object, expected: str) -> None:
    with pytest.raises(JsonFileError) as caught:
        RawConfig({"rms_norm_eps": value}).number("rms_norm_eps")
    assert caught.value.expected == expected


@pytest.mark.parametrize("layers", [10_001, 10**9, 10**400])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "qwen2_moe", "phi3", "opt"])
def test_layers_are_counted_before_they_are_listed(model_type: str, layers: int) -> None:
    base = OPT if model_type == "opt" else MOE
    with pytest.raises(JsonFileError, match=r"'num_hidden_layers'.*at most 10,000"):
        read_architecture(base | {"model_type": model_type, "num_hidden_layers": layers}, ())


def test_experts_are_counted_before_they_are_listed() -> None:
    with pytest.raises(JsonFileError, match=r"'num_experts'.*at most 10,000"):
        read_architecture(MOE | {"num_experts": 10**9}, ())
    with pytest.raises(UnsupportedFeatureError, match=r"at most 10 in each of 10000 layers"):
        read_architecture(MOE | {"num_experts": 10**4, "num_hidden_layers": 10**4}, ())


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "mixtral", "gptj"])
def test_more_heads_than_width(model_type: str) -> None:
    config = LLAMA | {
        "model_type": model_type,
        "num_attention_heads": 128,
        "num_key_value_heads": None,
    }
    if model_type == "gptj":
        config = {"model_type": "gptj", "vocab_size": 96, "n_embd": 64, "n_head": 128, "n_layer": 1, "rotary_dim": 4}  # fmt: skip
    with pytest.raises(JsonFileError, match=r"expected at most .* 64, found 128"):
        read_architecture(config, ())


@pytest.mark.parametrize(
    "change", [{"head_dim": 2**16 + 2}, {"head_dim": 2**32}, {"hidden_size": 2**32}]
)
def test_a_head_wider_than_any(change: dict[str, Any]) -> None:
    """Nothing is made of it, whether or not the tensors have it."""
    with pytest.raises(UnsupportedFeatureError, match=r"'head_dim'.*at most 65,536"):
        read_architecture(LLAMA | change, ())


SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1, "attention_factor": 1.1},
    {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 32, "factor": 2.0},
]  # fmt: skip


@pytest.mark.parametrize("scaling", SCALINGS, ids=[each["rope_type"] for each in SCALINGS])
@pytest.mark.parametrize(
    "value", [float("inf"), float("nan"), 1e300, 1e-300, 0, -1, "2", [1], True, 10**400]
)
def test_numbers_of_a_rotary_embedding(scaling: dict[str, Any], value: object) -> None:
    for key in [key for key in scaling if key != "rope_type"]:
        wrong = [value] * 8 if isinstance(scaling[key], list) else value
        with pytest.raises(JsonFileError, match=f"'rope_scaling.{key}'"):
            read_rope(RawConfig(LLAMA | {"rope_scaling": scaling | {key: wrong}}))


@pytest.mark.parametrize(
    ("scaling", "config", "key"),
    [
        (SCALINGS[2] | {"low_freq_factor": 4.0}, {}, "rope_scaling.high_freq_factor"),
        (SCALINGS[3], {"rope_theta": 1.0}, "rope_theta"),
        (SCALINGS[3], {"rope_theta": 0.5}, "rope_theta"),
        (SCALINGS[4] | {"original_max_position_embeddings": 1}, {}, "original_max_position_embeddings"),
        (SCALINGS[4] | {"original_max_position_embeddings": 0.5}, {}, "original_max_position_embeddings"),
    ],
)  # fmt: skip
def test_pairs_that_nothing_can_be_divided_by(
    scaling: dict[str, Any], config: dict[str, Any], key: str
) -> None:
    with pytest.raises(JsonFileError, match=f"'{key}'.*more than"):
        read_rope(RawConfig(LLAMA | config | {"rope_scaling": scaling}))


def test_the_tables_of_extremes_are_numbers() -> None:
    """What passes can be computed with."""
    torch = pytest.importorskip("torch")
    from int8conv.runtime.decoder.rotary import Rotary

    extremes = (1e-12, 1.0 + 1e-9, 1e12)
    passed = 0
    for scaling, theta in itertools.product(SCALINGS, (1e-12, 1.0, 1e12)):
        keys = [key for key in scaling if key not in ("rope_type", "attention_factor")]
        for values in itertools.product(extremes, repeat=len(keys)):
            changed = dict(zip(keys, values, strict=True))
            wide = {k: [v] * 8 if isinstance(scaling[k], list) else v for k, v in changed.items()}
            try:
                rope = read_rope(
                    RawConfig(LLAMA | {"rope_theta": theta, "rope_scaling": scaling | wide})
                )
            except JsonFileError:
                continue
            passed += 1
            assert context(rope, 64) > 0
            cos, sin = Rotary(rope, 16).tables(torch.arange(3), torch.float32)
            assert bool(cos.isfinite().all() and sin.isfinite().all()), (rope.kind, theta, wide)
    assert passed > 100


def test_a_share_of_more_than_all() -> None:
    with pytest.raises(
        JsonFileError, match=r"'partial_rotary_factor'.*expected 1e-30 to 1, found 2.0"
    ):
        read_rope(RawConfig(LLAMA | {"partial_rotary_factor": 2.0}), 0.5)


WRONG: list[object] = [
    None, True, 0, -1, 1.5, 10**9, 10**400, float("inf"), float("nan"), 1e308, 5e-324, "x", "", [], [1], [[]], {}, {"a": {}}, [None] * 3, ["full_attention"] * 10**4,
]  # fmt: skip


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_wrong_types_in_any_key_are_refused_in_a_line(model_type: str) -> None:
    """Or change nothing; never another error."""
    config = MOE | OPT | LLAMA | {
        "model_type": model_type, "n_embd": 64, "n_head": 4, "n_layer": 1, "ffn_dim": 128, "num_local_experts": 2, "num_experts": 2,
        "num_hidden_layers": 1, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 32, "rope_theta": 1e4,
        "rope_scaling": SCALINGS[3], "layer_types": ["full_attention"], "sliding_window": 8, "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16, "rotary_dim": 8, "mlp_only_layers": [0],
    }  # fmt: skip
    refused = 0
    for key, value in itertools.product(config, WRONG):
        if key != "model_type":
            try:
                read_architecture(config | {key: value}, ())
            except Int8convError as error:
                refused += 1
                assert len(str(error)) < 5000
                assert str(error).isprintable()
    assert refused > 50
