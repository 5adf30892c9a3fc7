"""A converted folder, or a source checkpoint, in the memory of a GPU; imports triton."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....formats.int8.folder import ConvertedFolder
from ....formats.safetensors.dtypes import SCALED_DTYPES
from ....formats.source.checkpoint import Checkpoint
from ....kernels.dispatch import Mode
from ....kernels.weight import MixedWeight
from ...models.architecture import Module, find_tensor
from ...models.config import DecoderConfig
from ...weights.weights import CheckpointWeights, ConvertedWeights
from ..interface import Backend
from ..parts import Projection
from .backend import GpuBackend
from .files import DeviceFiles, DeviceTensors
from .projections import DenseProjection, QuantizedProjection, SplitDeviceProjection


class DeviceConverted(ConvertedWeights):
    """A converted folder: one buffer per shard, every tensor is a view of it."""

    def __init__(
        self, converted: ConvertedFolder, config: DecoderConfig, dtype: torch.dtype, device: torch.device, mode: Mode | None = None,
        *, outlier_fallback: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(converted, dtype, mode, outlier_fallback=outlier_fallback)
        self._files = self.files = DeviceFiles(device)
        self.backend: Backend = GpuBackend(config.max_positions, device, self.counters)

    def _dense(self, weight: Tensor, bias: Tensor | None) -> Projection:
        return DenseProjection([(weight, None if bias is None else bias.to(self.dtype))])

    def _quantized(self, mixed: MixedWeight, bias: Tensor | None, sizes: Sequence[int]) -> Projection:  # fmt: skip
        return QuantizedProjection(mixed, bias, sizes, self.mode)

    def _split(self, parts: Sequence[Projection], order: Sequence[int]) -> Projection:
        return SplitDeviceProjection(parts, order)


class DeviceCheckpoint(CheckpointWeights):
    """A source checkpoint in 16 bits."""

    def __init__(self, checkpoint: Checkpoint, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:  # fmt: skip
        super().__init__(checkpoint, dtype, device)
        self.files = DeviceTensors(checkpoint.tensors.values(), dtype, device)
        self.backend: Backend = GpuBackend(config.max_positions, device)

    def tensor(
        self, module: Module, kind: str = "weight", dtype: torch.dtype | None = None
    ) -> Tensor:
        stored = find_tensor(self.checkpoint, module, kind)
        turned = stored.name in self.checkpoint.transposed
        if stored.dtype in SCALED_DTYPES or turned or dtype is not None:  # decoded on the host
            return super().tensor(module, kind, dtype)
        return self.files.tensor(stored)

    def projection(self, modules: Sequence[Module]) -> Projection:
        return DenseProjection([
            (self._weight(m), self.tensor(m, "bias") if m.bias else None) for m in modules
        ])  # fmt: skip
