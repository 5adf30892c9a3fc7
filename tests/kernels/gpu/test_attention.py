"""Attention of a step in the interpreter: rotation and cache as ``rotary`` has them, outputs against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from int8conv.errors import ArgumentError
from int8conv.kernels.gpu import attention, configs, reference, rotary, workspace

from .tensors import HALF_STEP, HALVES
from .test_rotary import tables

CONFIG = {"block_s": 16, "splits": 3, "num_warps": 4, "num_stages": 2}
WHOLE = {**CONFIG, "splits": 1}
Step = tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None, Tensor]
"""The first arguments: q, k, v, tables, lengths."""


def inputs(batch: int, heads: int, kv_heads: int, capacity: int, size: int, lengths: list[int], dtype: torch.dtype, rotated: int = 0) -> tuple[Step, list[Tensor]]:  # fmt: skip
    """A new token of each sequence, in parts of one matrix, and a cache that is NaN from its position on."""
    g = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, (heads + 2 * kv_heads) * size, generator=g).to(dtype)
    q, k, v = qkv.split([heads * size, kv_heads * size, kv_heads * size], dim=1)
    keys, values = torch.randn(2, batch, kv_heads, capacity, size, generator=g).to(dtype)
    for i, length in enumerate(lengths):
        keys[i, :, length - 1 :], values[i, :, length - 1 :] = float("nan"), float("nan")
    rope = tables(max(lengths), rotated) if rotated else None
    return (q, k, v, rope, torch.tensor(lengths, dtype=torch.int32)), [keys, values]


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 2, 64), (3, 1, 512)])
def test_a_sink_takes_its_share(heads: int, kv_heads: int, size: int) -> None:
    """Of parts without positions too, where it is far above all scores, and far below."""
    step, cache = inputs(4, heads, kv_heads, 80, size, [1, 70, 33, 16], torch.float16)
    how = {"scale": size**-0.5, "sinks": torch.linspace(-60, 60, heads), "window": 40}
    y, truth, largest = run(step, cache, CONFIG | {"block_s": 32}, **how)
    check(y, truth, largest)
    assert (y[:, -1].abs() < 1e-6).all()
    assert (y[:, 0].abs().amax(-1) > 0.1).all()


@pytest.mark.parametrize("config", [CONFIG, WHOLE], ids=["parts", "whole"])
def test_a_cache_that_has_the_token_is_only_read(config: Any) -> None:
    """Of another layer: as if the token came with it; an empty sequence gives zeros."""
    how: dict[str, Any] = {"scale": 0.25, "sinks": torch.tensor([-9.0, 0.0, 1.0, 9.0])}
    (q, k, v, rope, lengths), cache = inputs(3, 4, 2, 80, 16, [80, 16, 33], torch.float16, 16)
    y = attention.attend(q, k, v, rope, lengths, *cache, config=config, **how)
    before = [x.clone() for x in cache]
    again = attention.attend(q, None, None, rope, lengths, *cache, config=config, **how)
    assert (again.double() - y.double()).abs().max() <= 3 * HALF_STEP[q.dtype] * cache[1].nan_to_num().abs().max()  # fmt: skip
    truth = reference.attend(q, None, None, rope, lengths, *cache, **how)
    check(again, truth, cache[1].nan_to_num().abs().max().item())
    for found, wanted in zip(cache, before, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    lengths[1] = 0
    empty = attention.attend(q, None, None, rope, lengths, *cache, config=config, scale=0.25)
    assert (empty[1] == 0).all()


def in_eight_bits(x: Tensor, spread: float = 0.0) -> tuple[Tensor, Tensor]:
    """Codes and scales of a head and token; positions without numbers get the largest, and an infinite scale.

    ``spread``: decades that scales cover at random."""
    g = torch.Generator().manual_seed(3)
    x = x.float() * 10 ** (spread * (torch.rand(x.shape[:-1], generator=g) - 0.5))[..., None]
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(2**-14).half()
    codes = (x / scale.float()).round().nan_to_num(127).to(torch.int8)
    return codes, scale.nan_to_num(float("inf"))


def eight_bits(cache: list[Tensor], spread: float = 0.0) -> list[Tensor]:
    """Keys, values, their scales."""
    pairs = [in_eight_bits(x, spread) for x in cache]
    return [*(codes for codes, _ in pairs), *(scale for _, scale in pairs)]


def run(step: Step, cache: list[Tensor], config: Any = CONFIG, **how: Any) -> tuple[Tensor, Tensor, float]:  # fmt: skip
    """Output, float64 truth, and the largest value that is attended to; the caches have to be equal, bit for bit.

    Rotated queries and keys are those of ``rotary``, whose own tests hold it to float64.
    """

    def options(cache: list[Tensor]) -> dict[str, Any]:
        pairs = {key: option for key, option in how.items() if key != "interleaved"}
        return pairs | ({"scales": (cache[2], cache[3])} if len(cache) > 2 else {})

    q, k, v, rope, lengths = step
    own, wanted = ([x.clone() for x in cache] for _ in range(2))
    size = cache[0].shape[3]
    pair = {"interleaved": how.get("interleaved", False)}
    y = attention.attend(*step, *own[:2], **options(own), **pair, config=config)
    (seen,) = torch.zeros(1, 2, len(q), k.shape[1] // size, int(lengths.max()), size, dtype=q.dtype)
    q = rotary.rotate_and_store(q, k, v, rope, lengths - 1, *seen, **pair).flatten(1)
    k = torch.stack([seen[0, i, :, n - 1] for i, n in enumerate(lengths.tolist())]).flatten(1)
    truth = reference.attend(q.double(), k, v, None, lengths, *wanted[:2], **options(wanted))
    for found, expected in zip(own, wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    wide = wanted[1].float() * (wanted[3].float() if len(cache) > 2 else 1.0)
    counters = workspace.of_streams[y.device, 0].counters
    assert counters is not None
    assert (counters == 0).all()  # for the next launch
    return y, truth, max(wide[wide.isfinite()].abs().max().item(), v.abs().max().item())


def check(y: Tensor, truth: Tensor, largest: float) -> None:
    """Each probability and the result round to 16 bits once: two half steps of the largest value, and float32 sums."""
    assert y.isfinite().all()
    assert (y.double() - truth.double()).abs().max() <= (2 * HALF_STEP[y.dtype] + 1e-5) * largest


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {}, "alibi": {"slopes": torch.linspace(0.01, 0.5, 32)}, "window": {"window": 20}, "softcap": {"softcap": 2.0},
}  # fmt: skip


def variant_of(name: str, heads: int) -> dict[str, Any]:
    return {k: v[:heads] if isinstance(v, Tensor) else v for k, v in VARIANTS[name].items()}


SHAPES = [(4, 4, 16, 16, False), (8, 2, 64, 24, True), (3, 1, 40, 40, False), (32, 1, 8, 0, False), (2, 2, 128, 128, True)]  # fmt: skip
"""Heads, key heads, their size, how much of it is rotated, in pairs of neighbours or not."""


def dtype_of(variant: str, shape: Any) -> torch.dtype:
    """Every variant and every shape has both."""
    return HALVES[(list(VARIANTS).index(variant) + SHAPES.index(shape)) % 2]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_against_float64(variant: str, shape: Any) -> None:
    """The first token of a sequence, the last one of the cache, and those between."""
    heads, kv_heads, size, rotated, pairs = shape
    dtype = dtype_of(variant, shape)
    step, cache = inputs(4, heads, kv_heads, 80, size, [1, 80, 33, 16], dtype, rotated)
    check(*run(step, cache, scale=size**-0.5, interleaved=pairs, **variant_of(variant, heads)))


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_int8_cache_against_float64(variant: str, shape: Any) -> None:
    heads, kv_heads, size, rotated, pairs = shape
    dtype = dtype_of(variant, shape)
    step, cache = inputs(4, heads, kv_heads, 80, size, [1, 80, 33, 16], dtype, rotated)
    how = variant_of(variant, heads) | {"interleaved": pairs}
    check(*run(step, eight_bits(cache), scale=size**-0.5, **how))


@pytest.mark.parametrize("config", [CONFIG, WHOLE], ids=["parts", "whole"])
@pytest.mark.parametrize("narrow", [False, True], ids=["16 bits", "int8"])
def test_a_token_past_the_capacity_is_attended_to_and_not_stored(narrow: bool, config: Any) -> None:
    """Its place would be the next sequence's first."""
    step, cache = inputs(2, 4, 2, 8, 16, [9, 12], torch.float16, 16)
    check(*run(step, eight_bits(cache) if narrow else cache, config, scale=0.25))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e4])
def test_scales_of_any_magnitude_keep_shares_exact(magnitude: float, dtype: torch.dtype) -> None:
    """Shares times small scales would be lost in float16."""
    step, (keys, values) = inputs(1, 4, 2, 300, 32, [300], dtype)
    step[2].copy_(magnitude * step[2].abs())
    (keys, key_scales), (values, value_scales) = in_eight_bits(keys, 1.0), in_eight_bits(magnitude * values.float().abs(), 1.0)  # fmt: skip
    y, truth, largest = run(step, [keys, values, key_scales, value_scales], scale=0.05)
    check(y, truth, largest / 4)
    assert truth.abs().max() > 0.05 * largest


@pytest.mark.parametrize("narrow", [False, True], ids=["16 bits", "int8"])
def test_shipped_configurations(narrow: bool) -> None:
    step, cache = inputs(1, 4, 2, 300, 32, [300], torch.float16, 32)
    rows = [row for g in configs.GENERATIONS for row in configs.shipped("attention", g)]
    for row in {str(row): row for row in rows}.values():
        check(*run(step, eight_bits(cache) if narrow else cache, row, scale=0.2))


def test_the_last_part_may_have_positions_of_its_own() -> None:
    """As many as the others, so that no part is left for the new token alone."""
    step, cache = inputs(2, 6, 2, 200, 16, [97, 49], torch.float16, 16)
    check(*run(step, cache, scale=0.25))


def test_reference_is_softmax_attention() -> None:
    (q, k, v, _, lengths), (keys, values) = inputs(2, 4, 2, 30, 16, [30, 30], torch.float16)
    y = reference.attend(q, k, v, None, lengths, keys, values, scale=0.25)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.double().view(2, 4, 1, 16), keys.double(), values.double(), enable_gqa=True
    )
    assert torch.equal(keys[:, :, 29], k.view(2, 2, 16))
    torch.testing.assert_close(y.double(), expected[:, :, 0], atol=1e-3, rtol=1e-3)


def test_large_scores_do_not_overflow() -> None:
    (q, k, v, rope, lengths), (keys, values) = inputs(1, 2, 2, 50, 16, [50], torch.float16)
    step = (100 * q, 100 * k, v, rope, lengths)
    check(*run(step, [100 * keys, values], scale=1.0))


def test_the_cache_may_be_part_of_a_larger_one() -> None:
    cache = torch.randn(3, 2, 2, 2, 20, 16, generator=torch.Generator().manual_seed(0)).half()
    before = cache.clone()
    step, _ = inputs(2, 4, 2, 20, 16, [20, 7], torch.float16)
    y = attention.attend(*step, *cache[1], scale=0.25, config=CONFIG)
    own, truth, largest = run(step, list(before[1]), scale=0.25)
    assert torch.equal(y, own)
    check(y, truth, largest)
    assert torch.equal(cache[[0, 2]], before[[0, 2]])


def test_bad_arguments_are_named() -> None:
    (q, k, v, _, lengths), (keys, values) = inputs(2, 4, 2, 20, 16, [5, 6], torch.float16)

    def attend(*arguments: Any, **options: Any) -> None:
        attention.attend(*arguments, scale=1.0, **options)

    for arguments, message in (
        ((q[:, :48], k, v, None, lengths, keys, values), "heads of q: expected a multiple of 2, found 3"),
        ((q[:1], k, v, None, lengths, keys, values), "rows of q: expected 2, found 1"),
        ((q, k, v[:, :16], None, lengths, keys, values), "shape of v"),
        ((q, k, v, tables(4, 32), lengths, keys, values), "width of the tables: expected at most 8, found 16"),
        ((q, k, v, None, lengths, keys, values[:, :, :10]), "layout of values"),
        ((q.float(), k, v, None, lengths, keys, values), "dtype of q"),
        ((q, k, v, None, lengths, keys.to(torch.int8), values), r"dtype of keys: expected torch\.float16, found torch\.int8"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=message):
            attend(*arguments)
    scales = (keys[..., :1].contiguous(), keys[..., :1].contiguous())
    with pytest.raises(ArgumentError, match=r"dtype of keys: expected torch\.int8, found torch\.float16"):  # fmt: skip
        attend(q, k, v, None, lengths, keys, values, scales=scales)
    codes = keys.nan_to_num().to(torch.int8)
    for wrong, message in (
        ((scales[0].float(), scales[1]), "dtype of scales of keys: expected torch.float16"),
        ((scales[0][:, :, 1:], scales[1]), "shape of scales of keys"),
        ((scales[0], keys[..., :1]), "strides of scales of values"),
    ):
        with pytest.raises(ArgumentError, match=message):
            attend(q, k, v, None, lengths, codes, codes, scales=wrong)
