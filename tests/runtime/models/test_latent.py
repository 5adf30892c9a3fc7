"""Sizes of latent attention, when it folds, and the configs that mean it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from int8conv.errors import UnsupportedFeatureError
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.latent import Latent

from .test_families import config_of

V3 = Latent(rank=512, query_rank=1536, plain=128, rotated=64, value=128)


def test_sizes() -> None:
    assert (V3.query, V3.unfolded, V3.widths) == (192, 256, (512, 64))


def test_it_folds_after_other_positions_and_for_few_tokens() -> None:
    """170 tokens with the sizes of DeepSeek-V3: 512 * 256 / (2 * 512 - 256)."""
    assert V3.folds(170, 170)
    assert not V3.folds(171, 171)
    assert V3.folds(256, 257)


@pytest.mark.parametrize(("model_type", "grown"), [("deepseek_v3", 1.0), ("kimi_k2", 1.0), ("deepseek_v2", 0.0)])  # fmt: skip
def test_config(model_type: str, grown: float) -> None:
    """Kimi K2 is a DeepSeek-V3; scores are scaled with yarn's ``mscale_all_dim``, which a plain rotary embedding lacks."""
    name = "deepseek_v2, plain queries, wide values" if model_type == "deepseek_v2" else "deepseek_v3"  # fmt: skip
    values: dict[str, Any] = config_of(name).to_dict() | {"model_type": model_type}
    architecture = read_architecture(values, ())
    config = architecture.config
    assert config.latent is not None
    assert config.model_type == ("deepseek_v2" if model_type == "deepseek_v2" else "deepseek_v3")
    scale = (0.1 * grown * math.log(4) + 1) ** 2 / math.sqrt(config.latent.query)
    assert config.attention_scale == pytest.approx(scale)
    roles = set(architecture.layer(0))
    assert roles >= {"kv_a", "kv_a_norm", "kv_b", "o"}
    assert ("q_b" in roles) == ("q" not in roles) == (config.latent.query_rank is not None)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("deepseek_v2", "norm_topk_prob", True),
        ("deepseek_v2", "topk_method", "noaux_tc"),
        ("deepseek_v2, plain queries, wide values", "attention_bias", True),
        ("deepseek_v3", "scoring_func", "softmax"),
        ("deepseek_v3", "v_head_dim", 1 << 20),
    ],
)
def test_what_is_not_known_is_refused_by_name(name: str, key: str, value: object) -> None:
    with pytest.raises(UnsupportedFeatureError, match=key):
        read_architecture(config_of(name).to_dict() | {key: value}, ())


def test_an_indexer_limits_the_context_with_a_note() -> None:
    values = config_of("deepseek_v32").to_dict()
    architecture = read_architecture(values, ())
    assert architecture.config.max_positions == 80 < values["max_position_embeddings"]
    (note,) = architecture.notes
    assert "end at 80 positions" in note
