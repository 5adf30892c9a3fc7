"""Products with a weight that is widened block by block: any dtype, blocks of any size, and both modes."""

from __future__ import annotations

import pytest
import torch

from int8conv.kernels import reference
from int8conv.kernels.cpu import widened

from ..mixed_weights import check, dense, make_weight

G = torch.Generator().manual_seed(3)
X = torch.randn(4, 40, generator=G)
LONG = torch.randn(4, 300, generator=G)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.bfloat16, torch.float32], ids=str)  # fmt: skip
@pytest.mark.parametrize("elements", [1, 39, 40, 41, 80, 279, 280, 281, 1 << 19])
def test_blocks_of_rows_make_up_the_product(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, elements: int
) -> None:
    """Of seven rows, or of one where not even that fits."""
    monkeypatch.setattr(widened, "_BLOCK_ELEMENTS", elements)
    weight = (torch.randn(7, 40, generator=G) * 20).to(dtype)
    found = widened.linear(X, weight)
    expected = X.double() @ weight.double().t()
    assert found.dtype == torch.float32
    magnitude = X.double().abs() @ weight.double().abs().t()
    assert ((found.double() - expected).abs() <= 2e-6 * magnitude).all()


def test_the_weight_is_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened, "_BLOCK_ELEMENTS", 80)
    sizes: list[int] = []
    real = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **k: sizes.append(len(x)) or real(x, *a, **k))  # fmt: skip
    widened.linear(X, torch.ones(7, 40, dtype=torch.int8))
    assert sizes == [2, 2, 2, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_result_is_in_the_dtype_of_the_activations(dtype: torch.dtype) -> None:
    weight = torch.randn(7, 40, generator=G)
    found = widened.linear(X.to(dtype), weight)
    assert found.dtype == dtype
    expected = X.to(dtype).double() @ weight.to(dtype).double().t()
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("shape", [(0, 40), (7, 0), (0, 0)])
def test_weights_without_elements(shape: tuple[int, int]) -> None:
    found = widened.linear(X[:, : shape[1]], torch.empty(shape, dtype=torch.int8))
    assert found.shape == (4, shape[0])
    assert (found == 0).all()
    assert widened.linear(X[:0], torch.ones(7, 40)).shape == (0, 7)


@pytest.mark.parametrize("k", [0, 16])
def test_both_modes(k: int) -> None:
    weight = make_weight(10, 40, k, threshold=1.5)
    check(widened.w8a16(X, weight), X.double() @ dense(weight).t(), X, weight)
    torch.testing.assert_close(widened.w8a8(X, weight), reference.w8a8(X, weight, widened.BLOCK), rtol=1e-5, atol=1e-5)  # fmt: skip
    wide = make_weight(10, 40, k, threshold=1.5, activation_bits=16)
    check(widened.w8a8(X, wide), X.double() @ dense(wide).t(), X, wide)


@pytest.mark.parametrize("k", [0, 16])
def test_blocks_of_channels_have_scales_of_their_own(k: int) -> None:
    """Of 64, the last one of 44: a large value costs its own block its precision, and no other."""
    weight, x = make_weight(10, 300, k), LONG.clone()
    x[:, 130] = 1000.0
    found, block = widened.w8a8(x, weight), widened.BLOCK
    torch.testing.assert_close(found, reference.w8a8(x, weight, block), rtol=1e-5, atol=1e-3)
    exact = x.double() @ dense(weight).t()
    whole = (reference.w8a8(x, weight).double() - exact).norm()
    assert (found.double() - exact).norm() < (0.8 * whole if k == 0 else whole + 1e-6)
