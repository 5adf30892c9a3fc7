"""Kernels run in Triton's interpreter; memory that they should fill is poisoned first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.interpreter import interpret_quickly
from int8conv.kernels.gpu import launch

assert launch.INTERPRETED, "TRITON_INTERPRET must be set before triton is imported"
interpret_quickly()


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, or a pattern that no test expects, where nothing has been written."""

    def empty(*shape: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        value = float("nan") if dtype.is_floating_point else 85
        return torch.full(shape, value, dtype=dtype, device=like.device)

    monkeypatch.setattr(launch, "empty", empty)
