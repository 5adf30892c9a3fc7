"""Gated DeltaNet in a model: sequences of different length, states that cannot go back, the footprint."""

from __future__ import annotations

import pytest
import torch

import int8conv
from int8conv.runtime.decoder.cache import KVCache
from int8conv.runtime.generate.likelihood import score_continuations
from int8conv.runtime.measure.footprint import kv_cache_bytes
from int8conv.runtime.model import Model

from ....checkpoints import write_checkpoint
from ...models.test_families import config_of

G = torch.Generator().manual_seed(5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    config = config_of("qwen3_5_text").to_dict() | {"max_position_embeddings": 2048}
    return int8conv.load(write_checkpoint(tmp_path_factory.mktemp("delta"), config))


def test_sequences_of_different_length_do_not_disturb_each_other(model: Model) -> None:
    """Prompts one by one, then steps together; one is cleared, and another one starts in its place."""
    ids = torch.randint(101, (3, 12), generator=G)
    alone = [model.decoder.forward(row[None, :n]) for row, n in zip(ids, (9, 4, 6), strict=True)]
    cache = KVCache(model.config, batch=2, capacity=16, dtype=torch.float32)
    model.decoder.forward(ids[:1, :8], cache.sequence(0))
    model.decoder.forward(ids[1:2, :3], cache.sequence(1))
    together = model.decoder.forward(torch.stack([ids[0, 8:9], ids[1, 3:4]]), cache)
    torch.testing.assert_close(together[0, 0], alone[0][0, -1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1, 0], alone[1][0, -1], rtol=1e-4, atol=1e-5)
    cache.clear(1)
    model.decoder.forward(ids[2:, :6], cache.sequence(1))
    next_one = model.decoder.forward(torch.stack([ids[0, 9:10], ids[2, 6:7]]), cache)
    expected = model.decoder.forward(ids[2:, :7])[0, -1]
    torch.testing.assert_close(next_one[1, 0], expected, rtol=1e-4, atol=1e-5)


def test_a_state_cannot_go_back(model: Model) -> None:
    """A shortened cache starts anew; continuations that share a prefix are still scored as if alone."""
    cache = KVCache(model.config, batch=1, capacity=16, dtype=torch.float32)
    ids = torch.randint(101, (1, 10), generator=G)
    model.decoder.forward(ids, cache)
    cache.truncate(10)
    assert cache.length == 10
    cache.truncate(7)
    assert cache.length == 0
    expected = model.decoder.forward(ids)
    torch.testing.assert_close(model.decoder.forward(ids, cache), expected, rtol=1e-4, atol=1e-5)
    wide = KVCache(model.config, batch=2, capacity=16, dtype=torch.float32)
    wide.fill_from(cache)
    wide.enlarge(20)
    step = model.decoder.forward(torch.tensor([[5], [6]]), wide)
    for row, token in enumerate((5, 6)):
        alone = model.decoder.forward(torch.cat([ids[0], torch.tensor([token])])[None])[0, -1]
        torch.testing.assert_close(step[row, 0], alone, rtol=1e-4, atol=1e-5)
    prefix, rows = tuple(ids[0].tolist()), [(3, 4), (3, 5, 6), (7,)]
    found = score_continuations(model.decoder, [(prefix, row) for row in rows], 4)
    for row, likelihood in zip(rows, found, strict=True):
        logits = model.decoder.forward(torch.tensor([[*prefix, *row]])).log_softmax(-1)[0]
        alone = sum(float(logits[len(prefix) - 1 + i, token]) for i, token in enumerate(row))
        assert likelihood.total == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_footprint_counts_states_and_only_layers_with_keys(model: Model, batch: int) -> None:
    cache = KVCache(model.config, batch=batch, capacity=24, dtype=torch.float32)
    assert kv_cache_bytes(model.config, 24, batch, "float32") == cache.nbytes
    assert cache.nbytes == batch * (1 * 2 * 2 * 24 * 16 * 4 + 2 * 4 * (4 * 8 * 12 + 80 * 3))
