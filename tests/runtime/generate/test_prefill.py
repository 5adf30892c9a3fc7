"""A prompt in parts: which, after what, and whose logits come back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.runtime.decoder.working_sizes import PREFILL_TOKENS
from int8conv.runtime.generate.prefill import prefill


class Recorder:
    """A decoder whose logits are the last token's number."""

    def __init__(self, device: str) -> None:
        self.backend = SimpleNamespace(device=torch.device(device))
        self.parts: list[list[int]] = []
        self.caches: list[Any] = []

    def forward(self, token_ids: Tensor, cache: Any, *, last_only: bool) -> Tensor:
        assert last_only
        assert token_ids.shape[0] == 1
        self.parts.append(token_ids[0].tolist())
        self.caches.append(cache)
        return token_ids[:, -1:, None].expand(1, 1, 3)


@pytest.mark.parametrize(
    ("tokens", "sizes"),
    [(1, [1]), (3, [3]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (9, [4, 4, 1])],
)
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_parts_follow_each_other_through_one_cache(
    monkeypatch: pytest.MonkeyPatch, tokens: int, sizes: list[int], device: str
) -> None:
    for kind in PREFILL_TOKENS:
        monkeypatch.setitem(PREFILL_TOKENS, kind, 4 if device.startswith(kind) else 1)
    decoder, cache = Recorder(device), object()
    logits = prefill(decoder, torch.arange(10, 10 + tokens)[None], cache)  # type: ignore[arg-type]
    assert [len(part) for part in decoder.parts] == sizes
    assert [token for part in decoder.parts for token in part] == list(range(10, 10 + tokens))
    assert all(each is cache for each in decoder.caches)
    assert logits.tolist() == [[[9 + tokens] * 3]]
