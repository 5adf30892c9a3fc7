"""A converted folder, or a source checkpoint, in the memory of a GPU; imports triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats.checkpoint import Checkpoint
from ..formats.converted import ConvertedFolder
from ..formats.fp8 import FP8_DTYPES
from ..kernels import MixedWeight, Mode
from ..kernels.gpu.linear import Pending, linear
from ..kernels.gpu.linear import gated as gated_linear
from ..kernels.gpu.quantize import Before
from .architecture import Module, find_tensor
from .config import Activation, DecoderConfig
from .gpu_files import DeviceFiles, DeviceTensors
from .gpu_kernels import Deferred, GpuKernels, pending, value
from .torch_kernels import Kernels
from .weights import CheckpointWeights, ConvertedWeights, Projection, SplitProjection


class QuantizedProjection:
    """Linears of one input, one int8 matrix."""

    def __init__(self, weight: MixedWeight, bias: Tensor | None, sizes: Sequence[int], mode: Mode | None) -> None:  # fmt: skip
        self.weight = weight
        self.bias = bias
        self.sizes = list(sizes)
        self.mode = mode

    def __call__(self, x: Tensor | Deferred, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        rows, shape = pending(x)
        rest = None if residual is None else residual.reshape(-1, residual.shape[-1])
        y = linear(rows, self.weight, self.bias, rest, mode=self.mode)
        return y.view(*shape, -1).split_with_sizes(self.sizes, dim=-1)

    def inner(self, x: Pending, activation: Activation, gated: bool) -> Pending:
        """The FFN up to its last linear."""
        if gated:  # [gate; up], be they two linears or one
            return gated_linear(x, self.weight, self.bias, activation=activation, mode=self.mode)
        y = linear(x, self.weight, self.bias, mode=self.mode)
        return Pending(y, Before(activation=activation))


class DenseProjection:
    """Linears of one input with 16-bit weights."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        self.pairs = pairs

    def __call__(self, x: Tensor | Deferred, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        rows, shape = pending(x)
        outputs = [y.view(*shape, -1) for y in self._multiply(rows)]
        return outputs if residual is None else [residual + outputs[0]]

    def inner(self, x: Pending, activation: Activation, gated: bool) -> Pending:
        """The FFN up to its last linear."""
        return _inner(self._multiply(x), activation, gated)

    def _multiply(self, x: Pending) -> list[Tensor]:
        value = x.value()
        return [F.linear(value, weight.to(value.dtype), bias) for weight, bias in self.pairs]


class SplitDeviceProjection(SplitProjection):
    """Linears of one input that are not one matrix: some in int8 and some in 16 bits, as a rule."""

    def __call__(self, x: Tensor | Deferred, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        return super().__call__(value(x), residual=residual)  # once, not in every part

    def inner(self, x: Pending, activation: Activation, gated: bool) -> Pending:
        """The FFN up to its last linear."""
        return _inner(self(x.value()), activation, gated)


def _inner(outputs: Sequence[Tensor], activation: Activation, gated: bool) -> Pending:
    """From gate and up ``[tokens, inner]``, or from both in one, or from up alone."""
    first, *rest = outputs[0].chunk(2, dim=-1) if gated and len(outputs) == 1 else outputs
    return Pending(first, Before(activation=activation, times=rest[0] if rest else None))


class DeviceConverted(ConvertedWeights):
    """A converted folder: one buffer a shard, every tensor a view of it."""

    def __init__(
        self, converted: ConvertedFolder, config: DecoderConfig, dtype: torch.dtype, device: torch.device, mode: Mode | None = None,
        *, net: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(converted, dtype, mode, net=net)
        self._files: Any = DeviceFiles(device)
        self.files: DeviceFiles = self._files
        self.kernels: Kernels = GpuKernels(config.max_positions, device)

    def _dense(self, weight: Tensor, bias: Tensor | None) -> Projection:
        return DenseProjection([(weight, None if bias is None else bias.to(self.dtype))])

    def _quantized(self, mixed: MixedWeight, bias: Tensor | None, sizes: Sequence[int]) -> Projection:  # fmt: skip
        return QuantizedProjection(mixed, bias, sizes, self.mode)

    def _split(self, parts: Sequence[Projection], places: Sequence[int]) -> Projection:
        return SplitDeviceProjection(parts, places)


class DeviceCheckpoint(CheckpointWeights):
    """A source checkpoint in 16 bits."""

    def __init__(self, checkpoint: Checkpoint, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:  # fmt: skip
        super().__init__(checkpoint, dtype)
        self.device = device
        self.files = DeviceTensors(checkpoint.tensors.values(), dtype, device)
        self.kernels: Kernels = GpuKernels(config.max_positions, device)

    def tensor(self, module: Module, kind: str = "weight") -> Tensor:
        stored = find_tensor(self.checkpoint, module, kind)
        if stored.dtype in FP8_DTYPES:  # decoded on the host
            return super().tensor(module, kind).to(self.device)
        return self.files.tensor(stored)

    def projection(self, modules: Sequence[Module]) -> Projection:
        return DenseProjection([
            (self._weight(m), self.tensor(m, "bias") if m.bias else None) for m in modules
        ])  # fmt: skip
