"""Where a cache puts keys and values, for sequences of one length and of several."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from int8conv.runtime.decoder.cache import KVCache
from int8conv.runtime.measure.footprint import kv_cache_bytes
from int8conv.runtime.models.architecture import read_architecture
from int8conv.runtime.models.config import Heads

from ...checkpoints import LLAMA

CONFIG = replace(read_architecture(LLAMA, ()).config, num_layers=2, num_kv_heads=2, head_dim=4)


def cache(batch: int = 1, capacity: int = 6, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(CONFIG, batch=batch, capacity=capacity, dtype=dtype)


def values(start: int, tokens: int, batch: int = 1) -> Tensor:
    """``[batch, kv_heads, tokens, head_dim]``, each token its own number."""
    numbers = torch.arange(start, start + tokens).float()
    return numbers[None, None, :, None].expand(batch, 2, tokens, 4)


def numbers(found: Tensor, sequence: int = 0) -> list[float]:
    head: list[float] = found[sequence, 0, :, 0].tolist()
    return head


def put(to: KVCache, start: int, tokens: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """In both layers; values are keys plus 100."""
    new = values(start, tokens, batch)
    for layer in (0, 1):
        found = to.update(layer, new, new + 100)
    to.advance(tokens)
    return found


def test_size() -> None:
    made = cache(batch=3, capacity=5, dtype=torch.float16)
    assert (made.capacity, made.length) == (5, 0)
    assert made.nbytes == 2 * 2 * 3 * 2 * 5 * 4 * 2
    assert made.lengths.tolist() == [0, 0, 0]


def test_tokens_follow_each_other_and_all_so_far_come_back() -> None:
    made = cache()
    assert numbers(put(made, 0, 3)[0]) == [0, 1, 2]
    keys, found = put(made, 3, 2)
    assert numbers(keys) == [0, 1, 2, 3, 4]
    assert numbers(found) == [100, 101, 102, 103, 104]
    assert made.length == 5


def test_the_last_position_is_filled() -> None:
    made = cache(capacity=4)
    put(made, 0, 3)
    assert numbers(put(made, 3, 1)[0]) == [0, 1, 2, 3]
    assert made.length == made.capacity == 4


def test_layers_have_memory_of_their_own() -> None:
    made = cache()
    made.update(0, values(1, 1), values(2, 1))
    made.update(1, values(3, 1), values(4, 1))
    assert [float(part[0, 0, 0, 0]) for layer in (0, 1) for part in made.layer(layer)] == [
        1,
        2,
        3,
        4,
    ]


def test_prompts_of_several_lengths_then_a_token_each() -> None:
    """A sequence is part of the same memory; each token goes behind its own sequence's last."""
    made = cache(batch=2)
    put(made.sequence(0), 10, 3)
    put(made.sequence(1), 20, 1)
    assert made.lengths.tolist() == [3, 1]
    keys, _ = put(made, 30, 1, batch=2)
    assert numbers(keys, 0) == [10, 11, 12, 30]
    assert numbers(keys, 1)[:2] == [20, 30]
    assert made.lengths.tolist() == [4, 2]
    assert made.length == 4


def test_a_sequence_is_forgotten_alone() -> None:
    made = cache(batch=2)
    put(made, 0, 4, batch=2)
    made.clear(0)
    assert made.lengths.tolist() == [0, 4]
    keys, _ = put(made, 50, 1, batch=2)
    assert numbers(keys, 0)[0] == 50
    assert numbers(keys, 1) == [0, 1, 2, 3, 50]


@pytest.mark.parametrize(("to", "lengths"), [(0, [0, 0]), (2, [2, 1]), (3, [3, 1]), (9, [3, 1])])
def test_truncating_shortens_those_that_are_longer(to: int, lengths: list[int]) -> None:
    made = cache(batch=2)
    put(made.sequence(0), 0, 3)
    put(made.sequence(1), 0, 1)
    made.truncate(to)
    assert made.lengths.tolist() == lengths


def test_a_larger_memory_has_what_was_there() -> None:
    made = cache(capacity=3)
    put(made, 0, 3)
    made.enlarge(8)
    assert (made.capacity, made.length) == (8, 3)
    assert numbers(put(made, 3, 1)[0]) == [0, 1, 2, 3]
    keys, found = made.layer(0)
    assert keys.shape == found.shape == (1, 2, 8, 4)
    assert (keys[:, :, 4:] == 0).all()
    assert numbers(found)[:3] == [100, 101, 102]


def test_where_no_larger_memory_is_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the memory of the first layers alone."""
    config = replace(CONFIG, heads=(Heads(2, 4), Heads(1, 8)))
    made = KVCache(config, batch=1, capacity=3, dtype=torch.float32)
    real, calls = Tensor.new_zeros, list[int]()

    def scarce(old: Tensor, *shape: int) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return real(old, *shape)

    monkeypatch.setattr(Tensor, "new_zeros", scarce)
    with pytest.raises(MemoryError):
        made.enlarge(8)
    assert [part.shape[4] for part in made._parts] == [3, 3]
    made.enlarge(8)
    assert [part.shape[4] for part in made._parts] == [8, 8]


def test_two_sequences_change_places() -> None:
    """Each with its length; the first ones are a part of the same memory."""
    made = cache(batch=3)
    for i, tokens in enumerate((3, 1, 2)):
        put(made.sequence(i), 10 * i, tokens)
    made.exchange(0, 2)
    assert made.lengths.tolist() == [2, 1, 3]
    keys, found = put(made.first(2), 40, 1, batch=2)
    assert numbers(keys, 0) == [20, 21, 40]
    assert numbers(found, 1)[:2] == [110, 140]
    assert made.lengths.tolist() == [3, 2, 3]
    assert numbers(made.layer(1)[0], 2)[:3] == [0, 1, 2]


def test_layers_with_other_heads() -> None:
    """Each form of heads has its own memory; a layer that reads another one's keys has none."""
    heads = (Heads(2, 4), Heads(1, 6), Heads(2, 4), Heads(1, 6))
    config = replace(CONFIG, num_layers=4, heads=heads, key_sources=(0, 1, 2, 1))
    made = KVCache(config, batch=1, capacity=4, dtype=torch.float32)
    assert [tuple(part.shape) for part in made._parts] == [(2, 2, 1, 2, 4, 4), (1, 2, 1, 1, 4, 6)]
    assert made.nbytes == kv_cache_bytes(config, 4, 1, "float32")
    for start, tokens in ((0, 2), (2, 1)):
        for layer in range(3):
            here = config.heads_of(layer)
            new = (10 * layer + torch.arange(start, start + tokens).float())[:, None].expand(1, here.count, tokens, here.size)  # fmt: skip
            found = made.update(layer, new, new + 100)
            again = made.read(layer, start + tokens)
            assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        made.advance(tokens)
    made.enlarge(9)
    assert numbers(made.read(1, 3)[1]) == [110, 111, 112]
    assert numbers(made.sequence(0).read(2, 3)[0]) == [20, 21, 22]


def test_a_sequence_is_given_what_another_begins_with() -> None:
    made = cache(batch=3)
    put(made.sequence(0), 0, 4)
    put(made.sequence(2), 20, 3)
    made.copy(0, 2, 2)
    assert made.lengths.tolist() == [4, 0, 2]
    keys, found = put(made.sequence(2), 40, 1)
    assert numbers(keys) == [0, 1, 40]
    assert numbers(found) == [100, 101, 140]
    assert numbers(made.layer(1)[1])[:4] == [100, 101, 102, 103]
