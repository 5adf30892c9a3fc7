"""Layers of several kinds in one cache: each state and each layer's keys are counted once; both kinds of outputs are scaled."""

from __future__ import annotations

import pytest
import torch

from int8conv.runtime.decoder.cache import KVCache
from int8conv.runtime.decoder.ffn.scaled import scaled
from int8conv.runtime.decoder.mixers import SideBySide
from int8conv.runtime.measure.footprint import kv_cache_bytes
from int8conv.runtime.models.architecture import read_architecture

from ..models.test_families import config_of

SIZES = {
    "granitemoehybrid": (1, 12, 2 * (6 * 12 * 16 + 144 * 3)),
    "falcon_h1": (3, 16, 3 * (6 * 12 * 16 + 144 * 3)),
    "nemotron_h": (1, 16, 2 * (6 * 12 * 16 + 144 * 3)),
    "lfm2": (1, 12, 2 * 48 * 4),
}
"""Layers with keys, channels per head, and float32 numbers in the states of all layers."""


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_footprint_counts_states_and_keys(name: str, batch: int) -> None:
    config = read_architecture(config_of(name).to_dict(), ()).config
    cache = KVCache(config, batch=batch, capacity=24, dtype=torch.float32)
    layers, size, numbers = SIZES[name]
    assert cache.nbytes == 4 * batch * (layers * 2 * 2 * 24 * size + numbers)
    assert kv_cache_bytes(config, 24, batch, "float32") == cache.nbytes


def test_layers_are_numbered_by_kind() -> None:
    config = read_architecture(config_of("nemotron_h").to_dict(), ()).config  # M*-ME
    assert [config.has_attention(i) for i in range(5)] == [False, True, False, False, False]
    assert [config.has_ffn(i) for i in range(5)] == [False, False, True, False, True]
    assert [config.is_recurrent(i) for i in range(5)] == [True, False, False, True, False]
    assert (config.state_layer(0), config.state_layer(3), config.cache_layer(1)) == (0, 1, 0)


def test_outputs_are_scaled_and_added() -> None:
    config = read_architecture(config_of("falcon_h1, a norm, multipliers").to_dict(), ()).config
    x = torch.ones(1, 2, 3)
    both = SideBySide(config, lambda x, *_: x * 10, lambda x, *_: x * 100)
    expected = 0.6 * 10 + 1.2 * 0.7 * 100  # the input's multiplier counts for values
    assert torch.allclose(both(x, None, None, None), x * expected)  # type: ignore[arg-type]
    assert torch.allclose(both(x, None, None, 5 * x), x * (expected + 5))  # type: ignore[arg-type]
    project = scaled(lambda x, **_: [x, 2 * x], 3.0, 0.5)
    assert torch.equal(torch.stack([*project(x)]), torch.stack([3 * x, x]))
    assert torch.equal(scaled(lambda x, **_: [x], 3.0)(x, residual=x)[0], 4 * x)
