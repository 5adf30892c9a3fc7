"""Latent attention folded and unfolded, on a converted model; its cache in every dtype. That it equals transformers': test_families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import int8conv
from int8conv.runtime.decoder.latent_attention import LatentAttention
from int8conv.runtime.decoder.latent_cache import LatentCache
from int8conv.runtime.measure.footprint import kv_cache_bytes
from int8conv.runtime.model import Model

from ...checkpoints import write_checkpoint
from ..models.test_families import config_of

IDS = torch.randint(101, (2, 24), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latent")
    source = write_checkpoint(folder / "source", config_of("deepseek_v3").to_dict())
    int8conv.convert_checkpoint(source, folder / "int8")
    return folder / "int8"


def stepped(model: Model, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits of a prompt, of a few tokens behind it, and of single ones."""
    cache = model.decoder.backend.cache(model.config, batch=2, capacity=24, dtype=dtype)
    assert isinstance(cache, LatentCache)
    parts = [IDS[:, :11], IDS[:, 11:16], *IDS[:, 16:].split(1, dim=1)]
    return torch.cat([model.decoder.forward(part, cache) for part in parts], dim=1)


def test_folded_is_unfolded(folder: Path) -> None:
    model = int8conv.load(folder, mode="w8a16")
    folded = stepped(model)
    assert folded.std() > 0.03
    attentions = [block.attention for block in model.decoder.blocks]
    for attention in attentions:
        assert isinstance(attention, LatentAttention)
        attention.observed = True  # as in calibration: every linear is called
    assert (stepped(model) - folded).abs().max() <= 1e-5
    assert (model.decoder.forward(IDS) - folded).abs().max() <= 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 5e-3), ("int8", 0.1)])
def test_narrow_caches(folder: Path, dtype: str, bound: float) -> None:
    model = int8conv.load(folder, mode="w8a16")
    exact, found = stepped(model), stepped(model, getattr(torch, dtype))
    assert 0 < (found - exact).std() <= bound * exact.std()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_footprint_counts_latents(folder: Path, dtype: str) -> None:
    """24 + 8 channels per position, with two scales in int8."""
    model = int8conv.load(folder)
    cache = LatentCache(model.config, batch=3, capacity=10, dtype=getattr(torch, dtype))
    per_row = {"float32": 128, "float16": 64, "int8": 32 + 4}[dtype]
    assert kv_cache_bytes(model.config, 10, 3, dtype) == cache.nbytes == 3 * 3 * 10 * per_row


def test_the_footprint_grows_with_the_prompt(folder: Path) -> None:
    for device in ("cpu", "cuda"):
        small, large = (
            int8conv.predict_footprint(folder, context=n, device=device) for n in (8, 64)
        )
        assert large.kv_cache == 8 * small.kv_cache
        assert large.activations > small.activations
