"""Few tokens on a CPU at the speed of memory, compiled by numba if that is installed.

    y = (x @ codes^T) * scale + x[:, O] @ outlier_weight^T          int8 weights, ``w8a16``
    y = x @ weight^T                                                16-bit weights, ``dense``

A weight is read once and multiplied in float32: W8A16 in which only the sums are rounded. PyTorch's operators are slower at
this, most of all with 16-bit weights. Compiled code is cached on disk; the very first use takes some seconds.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..weight import MixedWeight

KINDS: Final = {torch.float16: 1, torch.bfloat16: 2}
"""Numbers of the 16-bit dtypes in compiled functions."""
NOTHING: Final = np.empty(0, np.float32)
_NO_RESIDUAL: Final = np.empty((0, 0), np.float32)
NO_NORM: Final = (0, 0.0, NOTHING, NOTHING)


_PARTS: Final = 4
"""Number of parts that each thread's rows are cut into. Not many: numba counts references to arrays at each function call, and
cores that do so wait for each other."""
_LOCK: Final = threading.Lock()
"""Numba's own thread pool ends the process when two threads use it at once."""


_ON_COMPILE: list[Callable[[], None]] = []
_USED: list[bool] = []


def on_compile(tell: Callable[[], None]) -> None:
    """Call ``tell`` once, when code is not in the cache and some seconds of compiling begin."""
    _ON_COMPILE[:] = [tell]


def notes() -> list[str]:
    """What became of compiled code that could not be kept on disk, once some has been compiled or looked for."""
    if not _USED:
        return []
    from .jit_cache import NOTES

    return list(NOTES)


@functools.cache
def available() -> bool:
    """Whether numba is installed and not switched off with ``INT8CONV_JIT=0``."""
    return os.environ.get("INT8CONV_JIT") != "0" and importlib.util.find_spec("numba") is not None


def w8a16(x: Tensor, weight: MixedWeight) -> Tensor:
    """float32 ``[tokens, in]`` -> float32 ``[tokens, out]``, outlier columns included, without bias."""
    y = torch.empty(x.shape[0], weight.out_features, dtype=torch.float32)
    with threads() as parts:
        from .jit_linear import linear  # takes half a second

        arguments = linear_arguments(weight)
        linear(_array(x), *NO_NORM, *arguments, 0, False, _NO_RESIDUAL, parts, y.numpy())
    return y


@functools.cache
def multiplies_int16() -> bool:
    """Whether compiled code has products of 16-bit integers on this processor: numba, and AVX2."""
    if not available():
        return False
    import numba
    from llvmlite import binding  # type: ignore[import-untyped]

    chosen = numba.config.CPU_NAME or numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    return not chosen and bool(binding.get_host_cpu_features().get("avx2"))


def int16(x: Tensor, codes: Tensor) -> Tensor:
    """float32 ``[tokens, in]``, rounded to 16 bits per token and block of channels, times codes int8 ``[out, in]``: float32 ``[tokens, out]``."""
    y = torch.empty(x.shape[0], codes.shape[0], dtype=torch.float32)
    if not x.numel():
        return y.zero_()
    with threads() as parts:
        from .jit_gemm import product  # takes half a second

        product(_array(x), codes.numpy(), parts, y.numpy())
    return y


def round_columns(
    aim: Tensor, factor: Tensor, exact: Tensor, most_steps: int, codes: Tensor, error: Tensor
) -> None:
    """See ``jit_rounding``; ``aim``, ``codes`` and ``error`` are written."""
    with threads():
        from .jit_rounding import round_columns as compiled  # takes half a second

        factor, most = factor.contiguous(), np.float32(most_steps)
        compiled(aim.numpy(), factor.numpy(), exact.numpy(), most, codes.numpy(), error.numpy())


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """float32 ``[tokens, in]`` times a float16 or bfloat16 weight ``[out, in]``: float32 ``[tokens, out]``."""
    y = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32)
    with threads():
        from .jit_linear import dense as compiled  # takes half a second

        compiled(_array(x), _bits(weight), KINDS[weight.dtype], y.numpy())
    return y


def linear_arguments(weight: MixedWeight, bias: Tensor | None = None) -> tuple[object, ...]:
    """A weight and a bias ``[out]`` as arguments of compiled functions."""
    index, columns = weight.outlier_index, weight.outlier_weight
    if index is None or columns is None:
        outliers = np.empty(0, np.int32), np.empty((weight.out_features, 0), np.uint16), 0
    else:
        outliers = index.numpy(), _bits(columns), KINDS[columns.dtype]
    return weight.codes.numpy(), weight.scale.numpy(), *outliers, array(bias)


def array(x: Tensor | None) -> npt.NDArray[np.float32]:
    """float32 of any shape; None: ``[0]``."""
    return NOTHING if x is None else _array(x.float())


def _array(x: Tensor) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = x.detach().contiguous().numpy()
    return found


def _bits(weight: Tensor) -> npt.NDArray[np.uint16]:
    found: npt.NDArray[np.uint16] = weight.detach().view(torch.uint16).numpy()
    return found


@contextmanager
def threads() -> Iterator[int]:
    """Let compiled functions use as many threads as PyTorch; yields the number of parts to cut a weight's rows into."""
    import numba

    with _LOCK, _telling():
        _USED[:] = [True]
        asked = torch.get_num_threads()
        count = min(asked, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        numba.set_num_threads(count)
        if (
            torch.get_num_threads() != asked
        ):  # numba's first threads set OpenMP's number, which is PyTorch's
            torch._C.set_num_threads(asked)  # vLLM replaces torch.set_num_threads by a warning
        yield count * _PARTS


@contextmanager
def _telling() -> Iterator[None]:
    if not _ON_COMPILE:
        yield
        return
    from numba.core import event

    class Listener(event.Listener):
        def on_start(self, event: Any) -> None:
            if _ON_COMPILE:
                _ON_COMPILE.pop()()

        def on_end(self, event: Any) -> None:
            """Nothing to do: only the start matters."""

    with event.install_listener("numba:compile", Listener()):
        yield
