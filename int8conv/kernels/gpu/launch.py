# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
"""Launching kernels: the only place that calls Triton, and the checks of all launchers.

Triton compiles a kernel anew where an integer is 1, or begins or ceases to be a multiple of 16. Numbers of tokens and what is
computed from a cache's capacity are exempt in every kernel (``do_not_specialize``), so that no length of a prompt compiles anything
that another has not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, Protocol

import torch
import triton
from torch import Tensor

from ...errors import ArgumentError

HALVES = (torch.float16, torch.bfloat16)
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on CPU tensors."""


class Kernel(Protocol):
    """A ``@triton.jit`` function."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        """The kernel as a function that launches it on a grid."""

    def warmup(self, *args: object, grid: tuple[int, ...], **meta: object) -> object:
        """Compile it for these arguments."""


class Compiler(Protocol):
    """Takes launches without running them, for a GPU that need not be there."""

    capability: int
    """Compute capability as one number."""

    def compile(self, kernel: Kernel, *args: object, **meta: object) -> None:
        """Compile what a launch with these arguments would run."""


compiler: Final[ContextVar[Compiler | None]] = ContextVar("compiler", default=None)
"""What launches go to instead of a GPU; None: to the GPU."""


def launch(kernel: Kernel, grid: tuple[int, ...], *args: object, **meta: object) -> None:
    """Launch a kernel. Contraction of ``a * b + c`` is pinned, as its default changes between Triton releases.

    One with a true constant ``PDL`` may begin before the one before it has ended (``primitives.after_previous``).
    """
    if not all(grid):
        return
    if meta.get("PDL"):
        meta["launch_pdl"] = True
    only_compiled = compiler.get()
    if only_compiled is not None:
        only_compiled.compile(kernel, *args, **meta, enable_fp_fusion=True)
    else:
        kernel[grid](*args, **meta, enable_fp_fusion=True)


def cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``, and at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def check_half(name: str, x: Tensor) -> None:
    """Check that activations have a 16-bit dtype.

    Raises:
        ArgumentError: ``x`` has another dtype.
    """
    if x.dtype not in HALVES:
        raise ArgumentError(f"dtype of {name}", expected="float16 or bfloat16", found=x.dtype)


def check_rows(name: str, x: Tensor, columns: int) -> None:
    """Check that ``x`` is a matrix of 16-bit rows without gaps.

    Raises:
        ArgumentError: the dtype, number of axes or number of columns is wrong, or rows have gaps.
    """
    check_half(name, x)
    if x.ndim != 2 or x.shape[1] != columns:
        raise ArgumentError(f"shape of {name}", expected=f"[rows, {columns}]", found=list(x.shape))
    if x.stride(1) != 1 and x.shape[1] > 1:
        raise ArgumentError(f"stride of {name}'s last axis", expected=1, found=x.stride(1))


def check_heads(
    q: Tensor, k: Tensor | None, v: Tensor | None, tables: tuple[Tensor, Tensor] | None, keys: Tensor, values: Tensor
) -> int:  # fmt: skip
    """Check rows of queries, keys and values of new tokens for a cache; how many elements of a head are rotated.

    Raises:
        ArgumentError: a shape, dtype or stride is invalid.
    """
    kv_heads, size = keys.shape[1], keys.shape[3]
    for name, x, columns in (("q", q, q.shape[1] // size), ("k", k, kv_heads), ("v", v, kv_heads)):
        if x is not None:
            check_rows(name, x, columns * size)
    if values.shape != keys.shape or values.stride() != keys.stride() or keys.stride(3) != 1:
        raise ArgumentError("layout of values", expected="that of keys, last axis contiguous", found=values.stride())  # fmt: skip
    rotated = 0 if tables is None else 2 * tables[0].shape[1]
    if rotated > size:
        raise ArgumentError("width of the tables", expected=f"at most {size // 2}", found=rotated // 2)  # fmt: skip
    return rotated


def cache_scales(
    keys: Tensor, values: Tensor, scales: tuple[Tensor, Tensor] | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None, tuple[int, int]]:
    """Scales of keys and values, and their batch and head strides; None and 0 for a cache in ``dtype``.

    Raises:
        ArgumentError: the cache has the wrong dtype, or the scales do not match it.
    """
    wanted = dtype if scales is None else torch.int8
    for name, x in (("keys", keys), ("values", values)):
        if x.dtype != wanted:
            raise ArgumentError(f"dtype of {name}", expected=wanted, found=x.dtype)
    if scales is None:
        return None, None, (0, 0)
    for name, x in zip(("scales of keys", "scales of values"), scales, strict=True):
        if x.dtype != torch.float16:
            raise ArgumentError(f"dtype of {name}", expected=torch.float16, found=x.dtype)
        if x.shape != (*keys.shape[:3], 1):
            raise ArgumentError(f"shape of {name}", expected=[*keys.shape[:3], 1], found=list(x.shape))  # fmt: skip
        if x.stride() != scales[0].stride() or x.stride(2) != 1:
            raise ArgumentError(f"strides of {name}", expected="those of keys, positions without gaps", found=x.stride())  # fmt: skip
    return *scales, scales[0].stride()[:2]  # type: ignore[return-value]


def capability(device: torch.device) -> int:
    """Compute capability as one number, such as 90, of the GPU or of the one that is compiled for; 80 for the interpreter."""
    only_compiled = compiler.get()
    return _capability(device) if only_compiled is None else only_compiled.capability


@functools.cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def overlaps(device: torch.device) -> bool:
    """Whether kernels can wait for the one before on the device: programmatic dependent launch, from Hopper on."""
    return not INTERPRETED and capability(device) >= 90


def empty(*shape: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for a kernel to fill; tests replace this with poisoned memory."""
    return torch.empty(shape, dtype=dtype, device=like.device)
