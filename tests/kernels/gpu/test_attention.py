"""Decode attention in the interpreter, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.kernels.gpu import attention, configs, reference

from .tensors import HALF_STEP, HALVES

CONFIG = {"block_s": 16, "splits": 3, "num_warps": 4, "num_stages": 2}


def inputs(batch: int, heads: int, kv_heads: int, capacity: int, size: int, lengths: list[int], dtype: torch.dtype) -> tuple[Tensor, ...]:  # fmt: skip
    """Queries, and a cache that is NaN behind each sequence's length."""
    g = torch.Generator().manual_seed(0)
    q = torch.randn(batch, heads, size, generator=g).to(dtype)
    keys, values = torch.randn(2, batch, kv_heads, capacity, size, generator=g).to(dtype)
    for i, length in enumerate(lengths):
        keys[i, :, length:], values[i, :, length:] = float("nan"), float("nan")
    return q, keys, values, torch.tensor(lengths, dtype=torch.int32)


def check(y: Tensor, expected: Tensor, values: Tensor) -> None:
    """Each probability and the result round to 16 bits once: two half steps of the largest value, and float32 sums."""
    largest = values.nan_to_num().abs().max().item()
    assert y.isfinite().all()
    assert (y.double() - expected.double()).abs().max() <= (2 * HALF_STEP[y.dtype] + 1e-5) * largest


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"),
    [(4, 4, 16), (8, 2, 64), (3, 1, 40), (32, 1, 8), (2, 2, 128)],
)
@pytest.mark.parametrize("variant", ["plain", "alibi", "window", "softcap"])
def test_against_float64(variant: str, heads: int, kv_heads: int, size: int, dtype: torch.dtype) -> None:  # fmt: skip
    lengths = [1, 70, 33, 16]
    q, keys, values, filled = inputs(4, heads, kv_heads, 80, size, lengths, dtype)
    options = {
        "plain": {},
        "alibi": {"slopes": torch.linspace(0.01, 0.5, heads)},
        "window": {"window": 20},
        "softcap": {"softcap": 2.0},
    }[variant]
    scale = size**-0.5
    y = attention.attend(q, keys, values, filled, scale=scale, **options, config=CONFIG)
    check(y, reference.attend(q, keys, values, filled, scale=scale, **options), values)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 2, 64), (3, 1, 512)])
def test_a_sink_takes_its_share(heads: int, kv_heads: int, size: int) -> None:
    """Of parts without positions too, where it is far above all scores, and far below."""
    q, keys, values, filled = inputs(4, heads, kv_heads, 80, size, [1, 70, 33, 16], torch.float16)
    how = {"scale": size**-0.5, "sinks": torch.linspace(-60, 60, heads), "window": 40}
    y = attention.attend(q, keys, values, filled, **how, config=CONFIG | {"block_s": 32})
    check(y, reference.attend(q, keys, values, filled, **how), values)
    assert (y[:, -1].abs() < 1e-6).all()
    assert (y[:, 0].abs().amax(-1) > 0.1).all()


def in_eight_bits(x: Tensor, spread: float = 0.0) -> tuple[Tensor, Tensor]:
    """Codes and scales of a head and token; positions without numbers get the largest, and an infinite scale.

    ``spread``: decades that scales cover at random."""
    g = torch.Generator().manual_seed(3)
    x = x.float() * 10 ** (spread * (torch.rand(x.shape[:-1], generator=g) - 0.5))[..., None]
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(2**-14).half()
    codes = (x / scale.float()).round().nan_to_num(127).to(torch.int8)
    return codes, scale.nan_to_num(float("inf"))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 16), (8, 2, 64), (3, 1, 40)])
@pytest.mark.parametrize("variant", ["plain", "alibi", "window", "softcap"])
def test_an_int8_cache_against_float64(variant: str, heads: int, kv_heads: int, size: int, dtype: torch.dtype) -> None:  # fmt: skip
    q, keys, values, filled = inputs(4, heads, kv_heads, 80, size, [1, 70, 33, 16], dtype)
    (keys, key_scales), (values, value_scales) = in_eight_bits(keys), in_eight_bits(values)
    options = {
        "plain": {},
        "alibi": {"slopes": torch.linspace(0.01, 0.5, heads)},
        "window": {"window": 20},
        "softcap": {"softcap": 2.0},
    }[variant]
    how = {"scale": size**-0.5, "scales": (key_scales, value_scales), **options}
    y = attention.attend(q, keys, values, filled, **how, config=CONFIG)
    wide = (values.float() * value_scales).where(value_scales.isfinite(), 0.0)
    check(y, reference.attend(q, keys, values, filled, **how), wide)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e4])
def test_scales_of_any_magnitude_keep_shares_exact(magnitude: float, dtype: torch.dtype) -> None:
    """Shares times small scales would be lost in float16."""
    q, keys, values, filled = inputs(1, 4, 2, 300, 32, [300], dtype)
    keys, key_scales = in_eight_bits(keys, spread=1.0)
    values, value_scales = in_eight_bits(magnitude * values.float().abs(), spread=1.0)
    how = {"scale": 0.05, "scales": (key_scales, value_scales)}
    y = attention.attend(q, keys, values, filled, **how, config=CONFIG)
    expected = reference.attend(q.double(), keys, values, filled, **how)
    largest = (values.double() * value_scales).abs().max()
    assert (y.double() - expected).abs().max() <= (2 * HALF_STEP[dtype] + 1e-5) * largest / 4
    assert expected.abs().max() > 0.05 * largest


@pytest.mark.parametrize("capability", configs.GENERATIONS)
def test_shipped_configurations_with_an_int8_cache(capability: int) -> None:
    q, keys, values, filled = inputs(1, 4, 2, 150, 32, [150], torch.float16)
    (keys, key_scales), (values, value_scales) = in_eight_bits(keys), in_eight_bits(values)
    how = {"scale": 0.2, "scales": (key_scales, value_scales)}
    expected = reference.attend(q, keys, values, filled, **how)
    for row in configs.shipped("attention", capability):
        y = attention.attend(q, keys, values, filled, **how, config=row)
        check(y, expected, values.float() * value_scales)


def test_reference_is_softmax_attention() -> None:
    q, keys, values, filled = inputs(2, 4, 2, 30, 16, [30, 30], torch.float16)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.double()[:, :, None], keys.double(), values.double(), enable_gqa=True
    )
    y = reference.attend(q, keys, values, filled, scale=0.25)
    torch.testing.assert_close(y.double(), expected[:, :, 0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("capability", configs.GENERATIONS)
def test_shipped_configurations(capability: int) -> None:
    q, keys, values, filled = inputs(1, 4, 2, 300, 32, [300], torch.float16)
    expected = reference.attend(q, keys, values, filled, scale=0.2)
    for row in configs.shipped("attention", capability):
        y = attention.attend(q, keys, values, filled, scale=0.2, config=row)
        check(y, expected, values)


def test_an_empty_sequence_gives_zeros() -> None:
    q, keys, values, filled = inputs(2, 2, 2, 20, 16, [0, 5], torch.float16)
    y = attention.attend(q, keys, values, filled, scale=0.25, config=CONFIG)
    assert (y[0] == 0).all()
    check(y, reference.attend(q, keys, values, filled, scale=0.25), values)


def test_large_scores_do_not_overflow() -> None:
    q, keys, values, filled = inputs(1, 2, 2, 50, 16, [50], torch.float16)
    y = attention.attend(100 * q, 100 * keys, values, filled, scale=1.0, config=CONFIG)
    check(y, reference.attend(100 * q, 100 * keys, values, filled, scale=1.0), values)


def test_the_cache_may_be_part_of_a_larger_one() -> None:
    cache = torch.randn(3, 2, 2, 2, 20, 16, generator=torch.Generator().manual_seed(0)).half()
    keys, values = cache[1]
    q = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1)).half()
    filled = torch.tensor([20, 7], dtype=torch.int32)
    y = attention.attend(q, keys, values, filled, scale=0.25, config=CONFIG)
    check(y, reference.attend(q, keys, values, filled, scale=0.25), values)


def test_bad_arguments_are_named() -> None:
    q, keys, values, filled = inputs(1, 4, 2, 20, 16, [5], torch.float16)
    with pytest.raises(ArgumentError, match="shape of keys"):
        attention.attend(q[:, :3], keys, values, filled, scale=1.0)
    with pytest.raises(ArgumentError, match="layout of values"):
        attention.attend(q, keys, values[:, :, :10], filled, scale=1.0)
    with pytest.raises(ArgumentError, match="dtype of q"):
        attention.attend(q.float(), keys, values, filled, scale=1.0)
    with pytest.raises(
        ArgumentError, match=r"dtype of keys: expected torch\.float16, found torch\.int8"
    ):
        attention.attend(q, keys.to(torch.int8), values, filled, scale=1.0)
    scales = (keys[..., :1].contiguous(), keys[..., :1].contiguous())
    with pytest.raises(
        ArgumentError, match=r"dtype of keys: expected torch\.int8, found torch\.float16"
    ):
        attention.attend(q, keys, values, filled, scale=1.0, scales=scales)
    codes = keys.nan_to_num().to(torch.int8)
    for wrong, message in (
        ((scales[0].float(), scales[1]), "dtype of scales of keys: expected torch.float16"),
        ((scales[0][:, :, 1:], scales[1]), "shape of scales of keys"),
        ((scales[0], keys[..., :1]), "strides of scales of values"),
    ):
        with pytest.raises(ArgumentError, match=message):
            attention.attend(q, codes, codes, filled, scale=1.0, scales=wrong)
