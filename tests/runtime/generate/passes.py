"""What passes through a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from int8conv.runtime.model import Model


def watch_passes(
    model: Model, monkeypatch: pytest.MonkeyPatch, record: Callable[[torch.Size], object]
) -> Model:
    """The model, with ``record`` told the token ids' shape of each forward pass."""
    forward = model.decoder.forward

    def counting(token_ids: Any, *args: Any, **options: Any) -> Any:
        record(token_ids.shape)
        return forward(token_ids, *args, **options)

    monkeypatch.setattr(model.decoder, "forward", counting)
    return model
