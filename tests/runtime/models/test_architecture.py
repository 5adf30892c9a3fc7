"""From config to modules; features that are not known are refused by name, never passed over."""

from __future__ import annotations

from typing import Any

import pytest

from int8conv.errors import JsonFileError, UnknownFamilyError, UnsupportedFeatureError
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.config import Rope

from ...checkpoints import LLAMA, OPT


def test_llama_modules_in_the_order_in_which_they_run() -> None:
    architecture = read_architecture(LLAMA, ())
    assert [m.role for m in architecture.modules] == [
        "embed",
        *["attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down"] * 2,
        "final_norm",
        "head",
    ]
    assert architecture.layer(1)["k"].path == "model.layers.1.self_attn.k_proj"
    assert architecture.layer(1)["k"].shape == (32, 64)


def test_linears_that_share_an_input_are_a_group() -> None:
    groups = [[m.role for m in group] for group in read_architecture(LLAMA, ()).groups()]
    assert groups == [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]] * 2
    groups = [[m.role for m in group] for group in read_architecture(OPT, ()).groups()]
    assert groups == [["q", "k", "v"], ["o"], ["up"], ["down"]] * 2


def test_opt_positions_start_at_row_2() -> None:
    outside = read_architecture(OPT, ()).outside()
    assert outside["positions"].shape == (66, 64)
    assert "head" not in outside  # tied


def test_a_checkpoint_of_the_base_model_lacks_the_prefix() -> None:
    architecture = read_architecture(LLAMA, {"embed_tokens.weight"})
    assert architecture.layer(0)["q"].path == "layers.0.self_attn.q_proj"


@pytest.mark.parametrize("model_type", ["gpt_of_2031", None, 7, ["llama"]])
def test_unknown_families_are_named(model_type: object) -> None:
    with pytest.raises(UnknownFamilyError, match="expected one of apertus, arcee, bamba"):
        read_architecture(LLAMA | {"model_type": model_type}, (), "some/config.json")


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        (LLAMA, "rope_scaling", {"factor": 8.0, "rope_type": "ntk"}),
        (LLAMA, "rope_scaling", {"type": "xpos", "factor": 2.0}),
        (LLAMA, "rope_parameters", {"rope_type": "axial"}),
        (LLAMA, "rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        (LLAMA, "hidden_act", "swiglu_oai"),
        (LLAMA, "hidden_act", ["silu"]),
        (LLAMA, "num_key_value_heads", 3),
        (LLAMA, "head_dim", 15),
        (OPT, "layer_norm_elementwise_affine", False),
        (OPT, "activation_function", "tanh"),
        (OPT, "num_attention_heads", 5),
    ],
)
def test_unknown_features_are_refused_by_name(
    family: dict[str, Any], key: str, value: object
) -> None:
    name = rf"{key}\.(type|rope_type|partial_rotary_factor)" if "rope" in key else key
    with pytest.raises(UnsupportedFeatureError, match=f"some/config.json: .*{name}"):
        read_architecture(family | {key: value}, (), "some/config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_attn_implementation", "sdpa"),
        ("sliding_window", None),
        ("use_cache", True),
        ("new", False),
    ],
)
def test_keys_that_change_nothing_are_passed_over(key: str, value: object) -> None:
    assert read_architecture(LLAMA | {key: value}, ()) == read_architecture(LLAMA, ())


@pytest.mark.parametrize("key", ["sliding_window", "num_local_experts", "a_new_feature"])
def test_keys_that_the_reference_does_not_read_are_noted(key: str) -> None:
    architecture = read_architecture(LLAMA | {key: 8}, ())
    assert architecture.config == read_architecture(LLAMA, ()).config
    assert architecture.notes == (
        f"config.json has keys that have no effect in this family: {key}",
    )


def test_the_width_of_a_bloom_of_the_first_releases() -> None:
    bloom = {"model_type": "bloom", "vocab_size": 96, "n_layer": 2, "num_attention_heads": 4}
    config = read_architecture(bloom | {"n_embed": 32, "hidden_size": 64}, ()).config
    assert (config.hidden_size, config.intermediate_size) == (32, 128)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", None), ("hidden_size", "64"), ("num_hidden_layers", 0), ("vocab_size", -1),
        ("rms_norm_eps", "small"), ("tie_word_embeddings", 1), ("num_attention_heads", True),
        ("rope_theta", "big"), ("rope_scaling", "linear"), ("rope_parameters", [1]),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}), ("rope_scaling", {"type": "linear"}),
    ],
)  # fmt: skip
def test_malformed_keys_are_named(key: str, value: object) -> None:
    with pytest.raises(JsonFileError, match=f"some/config.json: config key '{key}"):
        read_architecture(LLAMA | {key: value}, (), "some/config.json")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"type": "dynamic", "factor": 2.0, "alpha": 3}, "alpha"),
        (
            {
                "type": "linear",
                "factor": 4.0,
                "truncate": False,
            },
            "truncate",
        ),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7},
            "mscale",
        ),
        ({"type": "linear", "factor": 4.0, "beta_fast": 16}, "beta_fast"),
    ],
)
def test_unknown_keys_of_a_scaling_are_refused_by_name(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UnsupportedFeatureError, match=rf"rope_scaling\.{key}"):
        read_architecture(LLAMA | {"rope_scaling": values}, ())


def test_new_rope_parameters_do_not_hide_an_old_scaling() -> None:
    rope = {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "ntk"}}
    with pytest.raises(UnsupportedFeatureError, match=r"rope_scaling\.rope_type"):
        read_architecture(LLAMA | rope, ())


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_theta": 5e5}},
        {"rope_scaling": {"rope_theta": 5e5, "type": "default"}},
    ],
)
def test_rope_theta_in_old_and_new_configs(keys: dict[str, Any]) -> None:
    assert read_architecture(LLAMA | keys, ()).config.rope == Rope(5e5)


def test_scalings_of_old_and_new_configs() -> None:
    scaling = {
        "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    }  # fmt: skip
    expected = Rope(5e5, "llama3", 32.0, 1.0, 4.0, 8192.0)
    old = read_architecture(LLAMA | {"rope_theta": 5e5, "rope_scaling": scaling}, ())
    new = read_architecture(LLAMA | {"rope_parameters": scaling | {"rope_theta": 5e5}}, ())
    assert old.config.rope == new.config.rope == expected
