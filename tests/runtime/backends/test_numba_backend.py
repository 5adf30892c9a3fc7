"""Compiled layers against the same model without them, and which families have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import int8conv
from int8conv.kernels.cpu import jit
from int8conv.runtime.decoder.cache import KVCache
from int8conv.runtime.model import Model

from ..models.test_families import CONFIGS, config_of
from ..reference import TOLERANCE, reference

COMPILED = {
    "bloom", "bloom, six heads", "cohere", "falcon, alibi, in sequence", "falcon, groups", "falcon, groups, one norm", "falcon, one key head",
    "gemma", "gemma, one key head", "gemma2", "gemma2, low caps", "gemma3", "gemma3, scaled", "gpt2", "gpt_neox", "gpt_neox, in sequence, no biases",
    "gptj", "gptj, whole heads", "granite", "granite, multipliers", "llama, yarn", "mistral", "mistral, a window, wide heads", "olmo2",
    "phi", "phi, other shares", "phi3", "qwen2, windows in later layers, tied", "qwen3", "qwen3, wide heads, biases", "stablelm",
    "stablelm, parallel, biases", "starcoder2",
}  # fmt: skip
BY_PARTS = {"mixtral", "qwen2_moe"}


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    reference(config_of(request.param), tmp_path / "source", torch.bfloat16)
    int8conv.convert_checkpoint(
        tmp_path / "source", tmp_path / "int8", outlier_rule="error", max_outliers=0.2
    )
    return tmp_path / "int8"


def steps(model: Model, count: int = 3) -> Tensor:
    """Logits of steps of three sequences of different length."""
    ids = torch.randint(3, 101, (3, 30), generator=torch.Generator().manual_seed(1))
    cache = KVCache(model.config, batch=3, capacity=24, dtype=torch.float32)
    cache._parts[0].fill_(1e4)  # what is not written must not count
    for i, prompt in enumerate((15, 2, 9)):
        model.decoder.forward(ids[i : i + 1, :prompt], cache.sequence(i))
    return torch.cat([model.decoder.forward(ids[:, i : i + 1], cache) for i in range(count)], dim=1)  # fmt: skip


def layers(model: Model) -> list[object]:
    return [block.fused for block in model.decoder.blocks]


@pytest.mark.parametrize("folder", sorted(COMPILED), indirect=True)
def test_the_same_logits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = int8conv.load(folder)
    assert all(layer is not None for layer in layers(compiled))
    monkeypatch.setattr(jit, "available", lambda: False)
    plain = int8conv.load(folder)
    assert not any(layers(plain))
    found, expected = steps(compiled), steps(plain)
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("folder", sorted(BY_PARTS & set(CONFIGS)), indirect=True)
def test_families_that_go_by_parts(folder: Path) -> None:
    assert not any(layers(int8conv.load(folder)))


@pytest.mark.parametrize("folder", ["mistral"], indirect=True)
def test_when_it_is_not_asked(folder: Path) -> None:
    """In W8A8, in 16 bits, without a cache, and with several tokens."""
    assert not any(layers(int8conv.load(folder, mode="w8a8")))
    assert not any(layers(int8conv.load(folder, dtype="float16")))
    model = int8conv.load(folder)
    layer = model.decoder.blocks[0].fused
    assert layer is not None
    cache = KVCache(model.config, batch=1, capacity=8, dtype=torch.float32)
    x, positions, _ = model.decoder.embedding(torch.tensor([[3, 4]]), cache)
    assert layer(x, positions, cache) is None
    assert layer(x[:, :1], positions, None) is None
    x, positions, _ = model.decoder.embedding(torch.tensor([[3]]), cache)
    assert layer(x, positions, cache) is not None


@pytest.mark.parametrize("folder", ["mistral"], indirect=True)
def test_a_full_cache_is_not_written_past_its_end(folder: Path) -> None:
    model = int8conv.load(folder)
    cache = KVCache(model.config, batch=1, capacity=2, dtype=torch.float32)
    model.decoder.forward(torch.tensor([[3, 4]]), cache)
    with pytest.raises(IndexError, match="the cache is full"):
        model.decoder.forward(torch.tensor([[5]]), cache)
