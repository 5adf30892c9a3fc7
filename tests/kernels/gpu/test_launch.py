"""What every launcher checks, and how a kernel is started."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from int8conv.errors import ArgumentError
from int8conv.kernels.gpu import launch as L

HALF = torch.zeros(3, 8, dtype=torch.float16)
EMPTY = L.empty  # before the tests' poisoned memory takes its place


class Kernel:
    """Tells what it was started with."""

    def __init__(self) -> None:
        self.started: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **meta: self.started.append((grid, args, meta))


def test_a_kernel_is_started_once_with_contraction_pinned() -> None:
    kernel = Kernel()
    L.launch(kernel, (2, 3), 1, "a", BLOCK=4, num_warps=8)
    assert kernel.started == [((2, 3), (1, "a"), {"BLOCK": 4, "num_warps": 8, "enable_fp_fusion": True})]  # fmt: skip


def test_a_kernel_that_waits_may_begin_early() -> None:
    kernel = Kernel()
    for waits in (False, True):
        L.launch(kernel, (1,), PDL=waits)
    assert [meta.get("launch_pdl", False) for _, _, meta in kernel.started] == [False, True]


def test_launches_overlap_from_hopper_on(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    assert not L.overlaps(torch.device("cpu"))
    monkeypatch.setattr(L, "INTERPRETED", False)
    for capability, wanted in ((80, False), (89, False), (90, True), (100, True), (120, True)):
        monkeypatch.setattr(L, "capability", lambda device, found=capability: found)
        assert L.overlaps(device) is wanted


@pytest.mark.parametrize("grid", [(0,), (3, 0), (0, 3)])
def test_no_programs_are_no_start(grid: tuple[int, ...]) -> None:
    kernel = Kernel()
    L.launch(kernel, grid)
    assert kernel.started == []


def test_division_rounds_up() -> None:
    assert [L.cdiv(a, 4) for a in (0, 1, 3, 4, 5, 8, 9)] == [0, 1, 1, 1, 2, 2, 3]
    assert L.cdiv(2**62 + 1, 2) == 2**61 + 1  # exact, as no float is


def test_powers_of_two() -> None:
    assert [L.power_of_two(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 1025)] == [1, 1, 2, 4, 4, 8, 8, 16, 2048]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.float64], ids=str)
def test_activations_have_16_bits(dtype: torch.dtype) -> None:
    L.check_half("x", HALF)
    L.check_half("x", HALF.bfloat16())
    for check in (lambda x: L.check_half("x", x), lambda x: L.check_rows("x", x, 8)):
        with pytest.raises(ArgumentError, match=f"^dtype of x: expected float16 or bfloat16, found {dtype}$"):  # fmt: skip
            check(HALF.to(dtype))


def test_rows_have_no_gaps() -> None:
    L.check_rows("x", HALF, 8)
    L.check_rows("x", torch.zeros(3, 16).half()[:, 8:], 8)  # of a wider matrix
    L.check_rows("x", torch.zeros(8, 3).half().t()[:, :1], 1)  # a column: its stride says nothing
    L.check_rows("x", HALF[:0], 8)
    with pytest.raises(ArgumentError, match=re.escape("shape of x: expected [rows, 9], found [3, 8]")):  # fmt: skip
        L.check_rows("x", HALF, 9)
    with pytest.raises(ArgumentError, match=re.escape("found [1, 3, 8]")):
        L.check_rows("x", HALF[None], 8)
    with pytest.raises(ArgumentError, match="stride of x's last axis: expected 1, found 3"):
        L.check_rows("x", torch.zeros(8, 3).half().t(), 8)


KEYS = torch.zeros(2, 3, 5, 8, dtype=torch.int8)
SCALES = torch.ones(2, 3, 5, 1, dtype=torch.float16)


def test_a_cache_without_scales_is_in_the_dtype_of_activations() -> None:
    keys = KEYS.half()
    assert L.cache_scales(keys, keys, None, torch.float16) == (None, None, (0, 0))
    with pytest.raises(ArgumentError, match=r"dtype of values: expected torch.float16, found torch.bfloat16"):  # fmt: skip
        L.cache_scales(keys, keys.bfloat16(), None, torch.float16)
    with pytest.raises(ArgumentError, match=r"dtype of keys: expected torch.float16, found torch.int8"):  # fmt: skip
        L.cache_scales(KEYS, keys, None, torch.float16)


def test_scales_of_a_cache_and_their_strides() -> None:
    whole = torch.ones(2, 4, 5, 1, dtype=torch.float16)
    first, second = whole[:, :3], whole.clone()[:, :3]
    keys, values, strides = L.cache_scales(KEYS, KEYS, (first, second), torch.float16)
    assert keys is first
    assert values is second
    assert strides == (20, 5)


@pytest.mark.parametrize(
    ("keys", "scales", "words"),
    [
        (KEYS.half(), (SCALES, SCALES), "dtype of keys: expected torch.int8, found torch.float16"),
        (KEYS, (SCALES.float(), SCALES), "dtype of scales of keys: expected torch.float16, found torch.float32"),
        (KEYS, (SCALES, SCALES.float()), "dtype of scales of values"),
        (KEYS, (SCALES, SCALES[:, :2]), "shape of scales of values: expected [2, 3, 5, 1], found [2, 2, 5, 1]"),
        (KEYS, (SCALES[..., 0], SCALES), "shape of scales of keys"),
        (KEYS, (SCALES, torch.ones(3, 2, 5, 1).half().transpose(0, 1)), "strides of scales of values"),
        (KEYS, (torch.ones(2, 3, 5, 2).half()[..., :1],) * 2, "strides of scales of keys: expected those of keys, positions without gaps"),
    ],
)  # fmt: skip
def test_scales_that_do_not_fit(keys: torch.Tensor, scales: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(words)):
        L.cache_scales(keys, keys, scales, torch.float16)


def test_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    L._capability.cache_clear()
    assert L.capability(torch.device("cpu")) == 80
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: {0: (9, 0), 1: (12, 1)}[device.index])  # fmt: skip
    try:
        assert [L.capability(torch.device("cuda", i)) for i in (0, 1)] == [90, 121]
    finally:
        L._capability.cache_clear()


def test_memory_that_a_kernel_fills() -> None:
    found = EMPTY(3, 0, 2, like=HALF, dtype=torch.int8)
    assert (found.shape, found.dtype, found.device) == ((3, 0, 2), torch.int8, HALF.device)
    assert EMPTY(like=HALF, dtype=torch.float32).shape == ()
