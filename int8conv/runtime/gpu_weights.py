"""A converted folder, or a source checkpoint, in the memory of a GPU; imports triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats.checkpoint import Checkpoint
from ..formats.converted import ConvertedFolder
from ..kernels import MixedWeight, Mode
from ..kernels.gpu.linear import Pending, gated, linear
from ..kernels.gpu.quantize import Before
from .architecture import Module
from .config import Activation, DecoderConfig
from .gpu_files import DeviceFiles
from .gpu_kernels import Deferred, GpuKernels, check_supported, pending
from .torch_kernels import Kernels
from .weights import CheckpointWeights, ConvertedWeights, Projection


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

    def inner(self, x: Pending, activation: Activation) -> Pending:
        """The FFN up to its last linear."""
        if len(self.sizes) == 2:
            return gated(x, self.weight, self.bias, activation=activation, mode=self.mode)
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

    def inner(self, x: Pending, activation: Activation) -> Pending:
        """The FFN up to its last linear."""
        first, *rest = self._multiply(x)
        return Pending(first, Before(activation=activation, times=rest[0] if rest else None))

    def _multiply(self, x: Pending) -> list[Tensor]:
        value = x.value()
        return [F.linear(value, weight.to(value.dtype), bias) for weight, bias in self.pairs]


class DeviceConverted(ConvertedWeights):
    """A converted folder: one buffer a shard, every tensor a view of it."""

    def __init__(
        self, converted: ConvertedFolder, config: DecoderConfig, dtype: torch.dtype, device: torch.device, mode: Mode | None = None,
        *, net: bool = True,
    ) -> None:  # fmt: skip
        check_supported(config)
        super().__init__(converted, dtype, mode, net=net)
        self._files: Any = DeviceFiles(device)
        self.kernels: Kernels = GpuKernels(config.max_positions, device)

    def _dense(self, weight: Tensor, bias: Tensor | None) -> Projection:
        return DenseProjection([(weight, None if bias is None else bias.to(self.dtype))])

    def _quantized(self, mixed: MixedWeight, bias: Tensor | None, sizes: Sequence[int]) -> Projection:  # fmt: skip
        return QuantizedProjection(mixed, bias, sizes, self.mode)


class DeviceCheckpoint(CheckpointWeights):
    """A source checkpoint in 16 bits."""

    def __init__(self, checkpoint: Checkpoint, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:  # fmt: skip
        check_supported(config)
        super().__init__(checkpoint, dtype)
        self.device = device
        self.kernels: Kernels = GpuKernels(config.max_positions, device)

    def tensor(self, module: Module, kind: str = "weight") -> Tensor:
        return super().tensor(module, kind).to(self.device)

    def projection(self, modules: Sequence[Module]) -> Projection:
        return DenseProjection([
            (self._weight(m), self.tensor(m, "bias") if m.bias else None) for m in modules
        ])  # fmt: skip
