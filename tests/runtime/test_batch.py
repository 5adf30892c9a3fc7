"""Sequences of different length in one batch, in every family: each gets the logits that it gets alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

import int8conv
from int8conv.runtime.decoder.cache import Cache
from int8conv.runtime.model import Model

from .models.test_families import CONFIGS
from .reference import TOLERANCE, reference

PROMPTS = (17, 3, 9, 1)
STEPS = 8


def cache_of(model: Model, batch: int) -> Cache:
    cache = model.decoder.cache(batch=batch, capacity=40)
    for part in cache._parts:
        part.fill_(1e4)  # what is not written must not count
    return cache


def alone(model: Model, token_ids: Tensor, prompt: int, steps: int) -> Tensor:
    """Logits ``[steps, vocab]`` behind a prompt, a token at a time."""
    cache = cache_of(model, 1)
    model.decoder.forward(token_ids[None, :prompt], cache)
    rest = token_ids[None, prompt : prompt + steps].split(1, dim=1)
    return torch.cat([model.decoder.forward(token, cache)[0] for token in rest])


@pytest.mark.parametrize("name", CONFIGS)
def test_each_gets_what_it_gets_alone(name: str, tmp_path: Path) -> None:
    """Prompts one by one, then all of them a token at a time; then one is cleared and its memory used again."""
    kind, options = CONFIGS[name]
    reference(AutoConfig.for_model(kind, **options), tmp_path, torch.float32)
    model = int8conv.load(tmp_path)
    token_ids = torch.randint(3, 101, (4, 40), generator=torch.Generator().manual_seed(1))
    cache = cache_of(model, 4)
    for i, prompt in enumerate(PROMPTS):
        model.decoder.forward(token_ids[i : i + 1, :prompt], cache.sequence(i))
    expected = [alone(model, *pair, STEPS) for pair in zip(token_ids, PROMPTS, strict=True)]
    for step in range(STEPS):
        tokens = torch.stack([token_ids[i, n + step] for i, n in enumerate(PROMPTS)])[:, None]
        found = model.decoder.forward(tokens, cache)[:, 0]
        truth = torch.stack([each[step] for each in expected])
        assert (found - truth).abs().max() <= TOLERANCE
        assert truth.std() > 0.01
    cache.clear(0)
    assert cache.lengths.tolist() == [0, 11, 17, 9]
    found = model.decoder.forward(token_ids[:, :1], cache)[0, 0]
    first = model.decoder.forward(token_ids[:1, :1])[0, 0]
    assert (found - first).abs().max() <= TOLERANCE
