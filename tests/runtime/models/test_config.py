"""Which layer has which heads, keys and place in the cache."""

from __future__ import annotations

from dataclasses import replace

from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.config import Heads

from .test_families import config_of

GEMMA = read_architecture(config_of("gemma4_text").to_dict(), ()).config
"""Layers with and without a window in turn; the last two of four read keys of the first two."""


def test_layers_without_a_window_have_other_heads() -> None:
    assert [GEMMA.heads_of(layer) for layer in range(2)] == [Heads(2, 16), Heads(1, 32)]
    assert (GEMMA.rotated_size(local=False), GEMMA.rotated_size(local=True)) == (32, 16)
    alike = replace(GEMMA, heads=())
    assert alike.heads_of(1) == Heads(2, 16)
    assert alike.rotated_size(local=False) == 16


def test_layers_that_share_keys_share_their_place() -> None:
    assert [GEMMA.key_source(layer) for layer in range(4)] == [0, 1, 0, 1]
    assert [GEMMA.cache_layer(layer) for layer in range(4)] == [0, 1, 0, 1]
    assert GEMMA.kv_layers == 2
    own = replace(GEMMA, key_sources=())
    assert [own.cache_layer(layer) for layer in range(4)] == [0, 1, 2, 3]
    mixed = replace(own, recurrent_layers=(True, False, True, False))
    assert (mixed.cache_layer(3), mixed.kv_layers) == (1, 2)


def test_the_ffn_of_layers_that_share_is_wider() -> None:
    assert [GEMMA.ffn_size(layer) for layer in range(4)] == [64, 64, 128, 128]
