"""Configs of recurrent layers that do not make sense are refused by name, and so is what is not there."""

from __future__ import annotations

import pytest

from int8conv.errors import UnsupportedFeatureError
from int8conv.runtime.models.architecture import read_architecture

from .test_families import config_of


@pytest.mark.parametrize(
    ("name", "key", "value", "named"),
    [
        ("qwen3_5_text", "linear_num_value_heads", 3, "linear_num_value_heads"),
        ("qwen3_5_text", "linear_conv_kernel_dim", 1, "linear_conv_kernel_dim"),
        ("granitemoehybrid", "mamba_n_groups", 4, "mamba_n_heads"),
        ("granitemoehybrid", "mamba_d_state", 1 << 20, "mamba_d_state"),
        ("granitemoehybrid", "mamba_d_head", 7, "mamba_n_heads"),
        ("granitemoehybrid", "layer_types", ["conv"] * 3, "layer_types"),
        ("granitemoehybrid", "layer_types", ["mamba"] * 2, "layer_types"),
        ("granitemoehybrid", "time_step_limit", [0.1, 0.01], "time_step_limit"),
        ("granitemoehybrid", "time_step_limit", "0", "time_step_limit"),
        ("bamba", "mamba_d_conv", 1, "mamba_d_conv"),
        ("falcon_h1", "ssm_multipliers", [1.0], "ssm_multipliers"),
        ("falcon_h1", "attention_bias", True, "attention_bias"),
        ("nemotron_h", "moe_latent_size", 16, "moe_latent_size"),
        ("nemotron_h", "layers_block_type", ["rwkv"], "layers_block_type"),
        ("lfm2", "conv_L_cache", 1, "conv_L_cache"),
        ("lfm2", "layer_types", ["mamba"] * 3, "layer_types"),
        ("lfm2_moe", "num_dense_layers", "1", "num_dense_layers"),
    ],
)
def test_what_does_not_make_sense_is_refused(
    name: str, key: str, value: object, named: str
) -> None:
    config = config_of(name).to_dict() | {key: value}
    with pytest.raises(UnsupportedFeatureError, match=named):
        read_architecture(config, ())


def test_keys_of_releases_are_read_as_those_of_transformers() -> None:
    config = config_of("nemotron_h").to_dict()
    old = {key: value for key, value in config.items() if key not in ("layers_block_type", "layer_types")}  # fmt: skip
    old |= {"hybrid_override_pattern": "M*-ME"}
    assert read_architecture(old, ()).config == read_architecture(config, ()).config
    with pytest.raises(UnsupportedFeatureError, match="hybrid_override_pattern"):
        read_architecture(old | {"hybrid_override_pattern": "MX"}, ())
    config = config_of("granitemoehybrid").to_dict()
    old = config | {"layer_types": ["mamba", "attention", "mamba"], "mamba_d_head": "auto"}
    old |= {"time_step_limit": [0.0, {"__float__": "Infinity"}], "position_embedding_type": "nope"}
    assert read_architecture(old, ()).config == read_architecture(config, ()).config
    config = config_of("lfm2").to_dict()
    old = {key: value for key, value in config.items() if key not in ("layer_types", "intermediate_size", "tie_word_embeddings")}  # fmt: skip
    old |= {"full_attn_idxs": [1], "block_ff_dim": config["intermediate_size"], "tie_embedding": False}  # fmt: skip
    assert read_architecture(old, ()).config == read_architecture(config, ()).config


def test_a_shared_ffn_of_no_size_is_none() -> None:
    config = config_of("granitemoeshared").to_dict() | {"shared_intermediate_size": 0}
    architecture = read_architecture(config, ())
    assert "shared_down" not in architecture.layer(0)
    assert "4.down" in architecture.layer(0)
