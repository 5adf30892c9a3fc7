"""The static cache of a GPU, on the CPU: views of one allocation, lengths on the device, and the longest on the host."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from int8conv.runtime.backends.gpu.backend import GpuBackend
from int8conv.runtime.backends.gpu.cache import DeviceCache
from int8conv.runtime.decoder.cache import Quantized
from int8conv.runtime.measure.footprint import kv_cache_bytes
from int8conv.runtime.models.architecture import read_architecture

from ....checkpoints import LLAMA
from ...models.test_families import config_of
from .conftest import CPU

CONFIG = read_architecture(LLAMA, ()).config


def make(dtype: torch.dtype = torch.float16, batch: int = 3) -> DeviceCache:
    return DeviceCache(CONFIG, batch=batch, capacity=5, dtype=dtype, device=CPU)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_keys_and_values_of_a_layer_are_views(dtype: torch.dtype) -> None:
    cache = make(dtype)
    assert (cache.capacity, cache.length, cache.nbytes) == (5, 0, 2 * 2 * 3 * 2 * 5 * 16 * 2)
    assert (cache.lengths.dtype, cache.lengths.tolist()) == (torch.int32, [0, 0, 0])
    keys, values = cache.layer(1)
    assert isinstance(keys, Tensor)
    assert isinstance(values, Tensor)
    assert (keys.shape, keys.dtype) == ((3, 2, 5, 16), dtype)
    keys.fill_(1)
    values.fill_(2)
    found = [x.unique().tolist() for layer in (0, 1) for x in cache.layer(layer)]  # type: ignore[union-attr]
    assert found == [[0], [0], [1], [2]]


def test_an_int8_cache_has_scales() -> None:
    cache = make(torch.int8)
    assert cache.nbytes == 2 * 2 * 3 * 2 * 5 * (16 + 2)
    keys, values = cache.layer(1)
    assert isinstance(keys, Quantized)
    assert isinstance(values, Quantized)
    assert (keys.codes.dtype, keys.codes.shape) == (torch.int8, (3, 2, 5, 16))
    assert (keys.scale.dtype, keys.scale.shape) == (torch.float16, (3, 2, 5, 1))
    values.scale.fill_(3)
    again = cache.layer(1)
    assert isinstance(again[0], Quantized)
    assert isinstance(again[1], Quantized)
    assert (again[0].scale == 0).all()
    assert (again[1].scale == 3).all()


def test_the_host_keeps_the_longest_length_without_a_look_at_the_device() -> None:
    cache = make()
    cache.advance(4)
    cache.lengths[0] = 77  # as only a kernel could know
    assert cache.length == 4
    cache.truncate(3)
    assert (cache.length, cache.lengths.tolist()) == (3, [3, 3, 3])
    cache.truncate(9)
    assert cache.length == 3
    cache.advance(1)
    assert (cache.length, cache.lengths.tolist()) == (4, [4, 4, 4])


def test_a_sequence_is_a_part_of_the_same_memory() -> None:
    cache = make()
    part = cache.sequence(1)
    assert part.length == 0
    part.advance(2)
    keys, _ = part.layer(0)
    assert isinstance(keys, Tensor)
    keys.fill_(5)
    assert (part.length, cache.lengths.tolist()) == (2, [0, 2, 0])
    assert cache.sequence(1).length == 2
    assert cache.sequence(0).length == 0
    whole, _ = cache.layer(0)
    assert isinstance(whole, Tensor)
    assert whole.amax((1, 2, 3)).tolist() == [0, 5, 0]


def test_lengths_that_changed_through_a_part_are_counted_when_asked() -> None:
    cache = make()
    cache.sequence(2).advance(3)
    assert cache.length == 0
    first = cache.first(2)
    cache.recount()
    assert (cache.length, first.length) == (3, 0)
    cache.exchange(0, 2)
    first.recount()
    assert (first.length, first.lengths.tolist()) == (3, [3, 0])


@pytest.mark.parametrize("name", ["deepseek_v3", "gemma4_text", "qwen3_next"])
def test_the_footprint_counts_latents_other_heads_and_states(name: str) -> None:
    config = read_architecture(config_of(name).to_dict(), ()).config
    for dtype in ("float16", "int8"):
        made = GpuBackend(8, CPU).cache(config, batch=3, capacity=10, dtype=getattr(torch, dtype))
        assert made.capacity == 16
        assert made.nbytes == kv_cache_bytes(config, made.capacity, 3, dtype)


def test_states_cannot_go_back() -> None:
    """A sequence that is longer than asked for is empty then, and its state zero when it is read."""
    config = read_architecture(config_of("qwen3_next").to_dict(), ()).config
    cache = DeviceCache(config, batch=3, capacity=10, dtype=torch.float16, device=CPU)
    cache.advance(4)
    cache.lengths[1] = 2
    cache.states[1].matrix.fill_(7)
    cache.truncate(3)
    assert (cache.length, cache.lengths.tolist()) == (2, [0, 2, 0])
    assert [part.unique().tolist() for part in cache.state(1).matrix] == [[0], [7], [0]]
    cache.truncate(0)
    assert (cache.length, cache.lengths.tolist()) == (0, [0, 0, 0])
