"""Room behind a dynamic cache: what it shows, and what is never written to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from int8conv.hf.grown_cache import GrownCache, cache_layer


def filled(count: int = 5, dtype: torch.dtype = torch.float32) -> DynamicCache:
    cache = DynamicCache()
    numbers = torch.arange(2 * 3 * count * 4, dtype=dtype).view(2, 3, count, 4)
    cache.update(numbers, -numbers, 0)
    return cache


def append(layer: Any, value: float) -> GrownCache:
    room = GrownCache.of(layer)
    room.keys[:, :, room.filled] = value
    room.values[:, :, room.filled] = -value
    room.append_to(layer)
    return room


def test_tokens_are_appended_in_place() -> None:
    cache = filled()
    layer, before = cache.layers[0], cache.layers[0].keys.clone()
    first = append(layer, 1.0)
    assert append(layer, 2.0) is first
    assert cache.get_seq_length() == 7
    assert torch.equal(layer.keys[:, :, :5], before)
    assert layer.keys[0, 0, 5:, 0].tolist() == [1, 2]
    assert torch.equal(layer.values, -layer.keys)
    assert first.lengths.tolist() == [7, 7]


def test_room_grows() -> None:
    layer = filled().layers[0]
    rooms = [append(layer, float(i)) for i in range(150)]
    assert len(set(rooms)) == 3  # of 5 + 64, 69 + 64 and more positions
    assert layer.keys[1, 2, 5:, 3].tolist() == list(range(150))


@pytest.mark.parametrize("change", ["crop", "reorder", "reset and fill"])
def test_after_any_other_change_there_is_new_room(change: str) -> None:
    layer = filled().layers[0]
    first = append(layer, 1.0)
    seen = layer.keys
    if change == "crop":
        layer.keys, layer.values = layer.keys[:, :, :5], layer.values[:, :, :5]
    elif change == "reorder":
        layer.reorder_cache(torch.tensor([1, 0]))
    else:
        layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
    assert append(layer, 9.0) is not first
    assert seen[0, 0, 5, 0] == 1


def test_copies_do_not_write_into_each_other() -> None:
    layer = filled().layers[0]
    append(layer, 1.0)
    for twin in (copy.copy(layer), copy.deepcopy(layer)):
        append(layer, 2.0)
        append(twin, 3.0)
        assert layer.keys[0, 0, -1, 0] == 2
        assert twin.keys[0, 0, -1, 0] == 3


def test_other_caches_are_left_alone() -> None:
    cache = filled()
    assert cache_layer(cache, 0) is cache.layers[0]
    assert cache_layer(cache, 1) is None
    assert cache_layer(None, 0) is None
    assert cache_layer(filled(dtype=torch.float16), 0) is None
    assert cache_layer(DynamicCache(), 0) is None

    class Other(DynamicCache): ...

    other = Other()
    other.update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 0)
    assert cache_layer(other, 0) is None


def test_a_window_that_is_full_is_left_alone() -> None:
    cache = DynamicCache()
    layer = DynamicSlidingWindowLayer(sliding_window=6)
    cache.layers.append(layer)
    layer.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    for count in (4, 5):
        assert cache_layer(cache, 0) is layer
        append(layer, 1.0)
        assert layer.get_seq_length() == layer.keys.shape[2] == count
    assert cache_layer(cache, 0) is None
    keys, _ = layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert keys.shape[2] == 6
