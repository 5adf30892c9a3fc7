"""The runtime with the kernels for GPUs on a CPU, in Triton's interpreter, and what it is held to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from int8conv.formats.int8.folder import open_converted
from int8conv.formats.source.checkpoint import open_checkpoint
from int8conv.kernels.dispatch import Mode
from int8conv.runtime.backends.gpu.cache import DeviceCache
from int8conv.runtime.backends.gpu.weights import DeviceConverted
from int8conv.runtime.decoder.cache import KVCache
from int8conv.runtime.decoder.decoder import Decoder
from int8conv.runtime.decoder.quantized_cache import QuantizedCache
from int8conv.runtime.models.architecture import Architecture, read_architecture
from int8conv.runtime.weights.weights import ConvertedWeights

CPU = torch.device("cpu")
TOLERANCE = 1.5
"""Root mean square error of the logits against the CPU path in float32 without quantized activations, in units of what the
CPU path in float16 has there. In W8A8 most of either is codes that rounding moved by one, so the two differ by as much."""
ROUNDING = 2.0**-10
"""Of the logits' root mean square: what is allowed in any case, as activations are rounded to float16 (2^-11) many times."""


def architecture(folder: Path) -> Architecture:
    checkpoint = open_checkpoint(folder)
    return read_architecture(checkpoint.config, checkpoint.tensors)


def decoders(folder: Path, mode: Mode) -> tuple[Decoder, Decoder, Decoder]:
    """With the GPU's kernels, on the CPU in float16, and in float32 with activations as they are."""
    form, converted, half = architecture(folder), open_converted(folder), torch.float16
    gpu = Decoder(form, DeviceConverted(converted, form.config, half, CPU, mode), half)
    cpu = Decoder(form, ConvertedWeights(converted, half, mode), half)
    wide = ConvertedWeights(converted, torch.float32, "w8a16")
    return gpu, cpu, Decoder(form, wide, torch.float32)


def tokens(batch: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(96, (batch, count), generator=generator)


def error(found: Tensor, truth: Tensor) -> float:
    assert found.shape == truth.shape
    return ((found - truth).square().mean().sqrt() / truth.square().mean().sqrt()).item()


def check(found: Tensor, cpu: Tensor, truth: Tensor) -> None:
    assert error(found, truth) <= max(TOLERANCE * error(cpu, truth), ROUNDING)
    assert error(cpu, truth) < 0.05


def device_cache(decoder: Decoder, batch: int, capacity: int, dtype: torch.dtype | None = None) -> DeviceCache:  # fmt: skip
    dtype = dtype or decoder.dtype
    return DeviceCache(decoder.config, batch=batch, capacity=capacity, dtype=dtype, device=CPU)


def cpu_cache(decoder: Decoder, batch: int, capacity: int) -> KVCache:
    return KVCache(decoder.config, batch=batch, capacity=capacity, dtype=decoder.dtype)


def quantized_cache(decoder: Decoder, batch: int, capacity: int) -> QuantizedCache:
    return QuantizedCache(decoder.config, batch=batch, capacity=capacity)


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in _FORBIDDEN, func
        masks = args[1] if func.overloadpacket is torch.ops.aten.index else ()
        assert not any(mask is not None and mask.dtype == torch.bool for mask in masks)
        return func(*args, **(kwargs or {}))


_FORBIDDEN = {"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique"}


@contextmanager
def without_the_host() -> Iterator[None]:
    """Fails at what a CUDA graph could not capture: values read by the host, or shapes that depend on them, or data that
    comes from the host."""
    with _Watch(), mock.patch.object(Tensor, "tolist", side_effect=AssertionError("tolist")):
        yield
