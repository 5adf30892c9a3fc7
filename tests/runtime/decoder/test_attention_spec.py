"""What a config says of one layer's attention, and the slopes of ALiBi."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from int8conv.runtime.decoder.attention_spec import AttentionSpec, alibi_slopes
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.config import DecoderConfig, Rope

from ...checkpoints import LLAMA


def config(**changes: Any) -> DecoderConfig:
    return replace(read_architecture(LLAMA, ()).config, **changes)


def spec(layer: int = 0, **changes: Any) -> AttentionSpec:
    return AttentionSpec.of(config(**changes), layer, None, None)


def test_scores_are_scaled_by_the_heads_size_or_as_the_config_says() -> None:
    assert spec().scale == 16**-0.5
    assert spec(attention_scale=0.3).scale == 0.3
    assert (spec().heads, spec().kv_heads, spec().size) == (4, 2, 16)


def test_a_cache_may_have_fewer_layers() -> None:
    assert spec(1).layer == 1
    assert AttentionSpec.of(config(), 1, None, None, cache_layer=0).layer == 0


def test_layers_with_a_window_may_have_a_rotary_embedding_of_their_own() -> None:
    windows = {"windows": (8, None)}
    assert [spec(i, **windows).window for i in (0, 1)] == [8, None]
    assert [spec(i, **windows).rotary for i in (0, 1)] == [0, 0]
    local = windows | {"local_rope": Rope(1e4)}
    assert [spec(i, **local).rotary for i in (0, 1)] == [1, 0]


def test_alibi_is_scaled_where_the_config_says_so() -> None:
    assert spec().alibi == 0
    assert spec(alibi=True).alibi == 1
    assert spec(alibi=True, alibi_scaled=True).alibi == 0.25


def test_pairs_and_norms() -> None:
    assert not spec().interleaved
    assert spec(rope=Rope(1e4, interleaved=True)).interleaved
    assert not spec(rope=None).interleaved
    assert spec(query_norm="head").by_head
    assert not spec(query_norm="row").by_head
    assert spec(attention_softcap=30.0).softcap == 30


@pytest.mark.parametrize("heads", [1, 2, 8, 16, 64])
def test_slopes_of_a_power_of_two_are_a_geometric_sequence(heads: int) -> None:
    """From 2^(-8/n) down to 2^-8."""
    expected = [2 ** (-8 * (i + 1) / heads) for i in range(heads)]
    torch.testing.assert_close(alibi_slopes(heads), torch.tensor(expected))
    assert alibi_slopes(heads)[-1] == 2**-8


def test_slopes_between_powers_of_two() -> None:
    """Those of the power below, then every other one of the power above (the paper's code for 12 heads)."""
    eight, sixteen = alibi_slopes(8), alibi_slopes(16)
    torch.testing.assert_close(alibi_slopes(12), torch.cat([eight, sixteen[:8:2]]))
    assert len(alibi_slopes(71)) == 71
