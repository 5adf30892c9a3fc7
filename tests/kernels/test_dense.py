"""The plain linear with a weight in fewer bits than the activations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from int8conv.kernels import dense, dense_linear


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("block", [1, 100, 1 << 19])
def test_equals_a_widened_weight(
    dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "_BLOCK_ELEMENTS", block)
    g = torch.Generator().manual_seed(0)
    x, bias = torch.randn(2, 3, 40, generator=g), torch.randn(7, generator=g)
    weight = torch.randn(7, 40, generator=g).to(dtype)
    expected = F.linear(x, weight.float(), bias)
    torch.testing.assert_close(dense_linear(x, weight, bias), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense_linear(x, weight), expected - bias, rtol=1e-5, atol=1e-5)
