"""Weights files in the memory of a GPU: one buffer per shard, with tensors as views of it; nothing is repacked.

Peak device memory is the size of the files or, for a source that is converted to another dtype, the converted size plus a few
MiB in conversion. Peak host memory is that of the pinned stages (``staging``), until ``finish``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import Tensor

from ....formats.safetensors.storage import WeightsFile
from ....formats.safetensors.stored import StoredTensor
from ...weights.mapping import TORCH_DTYPES, torch_dtype
from .staging import Piece, Staging

_ALIGNMENT: Final = 256


@dataclass
class Loading:
    """What has been copied to the device so far, and how long that took, including pinning."""

    nbytes: int = 0
    """Bytes of files."""
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        """Bytes per second."""
        return self.nbytes / self.seconds if self.seconds else 0.0


class _Shards(ABC):
    """One buffer per file, filled when one of its tensors is first requested."""

    def __init__(self, device: torch.device, staging: Staging | None = None) -> None:
        self.device = device
        self.loading = Loading()
        self._staging = staging
        self._buffers: dict[WeightsFile, Tensor] = {}

    @abstractmethod
    def _plan(self, file: WeightsFile) -> tuple[Tensor, list[Piece]]:
        """A file's buffer, and the pieces that go into it."""

    def _buffer(self, file: WeightsFile) -> Tensor:
        if file not in self._buffers:
            started = time.perf_counter()
            with torch.inference_mode(False):  # the threads that fill it are not in that mode
                buffer, pieces = self._plan(file)
                self._staging = self._staging or Staging(self.device)
            self._staging.fill(file, pieces)
            self._buffers[file] = buffer
            self.loading.seconds += time.perf_counter() - started
            self.loading.nbytes += sum(piece.nbytes for piece in pieces)
        return self._buffers[file]

    def finish(self) -> Loading:
        """Release the pinned memory once everything has been requested (a later file would allocate it again)."""
        self._staging = None
        return self.loading


class DeviceFiles(_Shards):
    """Files copied unchanged."""

    def tensor(self, stored: StoredTensor) -> Tensor:
        """A view of the stored tensor, in its dtype and shape."""
        return self.fused([stored])

    def fused(self, parts: list[StoredTensor]) -> Tensor:
        """One view of adjacent tensors, concatenated along their first axis."""
        first = parts[0]
        dtype = torch_dtype(first)
        shape = (sum(p.shape[0] for p in parts), *first.shape[1:]) if first.shape else ()
        count = sum(p.nbytes for p in parts)
        if count == 0:
            return torch.empty(shape, dtype=dtype, device=self.device)
        part = self._buffer(first.file)[first.offset : first.offset + count]
        if first.offset % dtype.itemsize:  # allowed in foreign files, but a view must be aligned
            part = part.clone()
        return part.view(dtype).view(shape)

    def _plan(self, file: WeightsFile) -> tuple[Tensor, list[Piece]]:
        buffer = torch.empty(file.size(), dtype=torch.uint8, device=self.device)
        return buffer, [Piece(0, torch.uint8, buffer)]


class DeviceTensors(_Shards):
    """The tensors of a source in one dtype, converted on the device if necessary.

    Args:
        tensors: all tensors of the files, as files are copied completely.
        dtype: dtype to convert to.
    """

    def __init__(
        self, tensors: Iterable[StoredTensor], dtype: torch.dtype, device: torch.device, staging: Staging | None = None
    ) -> None:  # fmt: skip
        super().__init__(device, staging)
        self.dtype = dtype
        self._places: dict[WeightsFile, dict[StoredTensor, int]] = {}
        self._sizes: dict[WeightsFile, int] = {}
        for stored in sorted(tensors, key=lambda t: t.offset):
            if stored.dtype not in TORCH_DTYPES:
                continue
            start = self._sizes.get(stored.file, 0)
            self._places.setdefault(stored.file, {})[stored] = start
            size = prod(stored.shape) * dtype.itemsize
            self._sizes[stored.file] = start + -(-size // _ALIGNMENT) * _ALIGNMENT

    def tensor(self, stored: StoredTensor) -> Tensor:
        """A view of the tensor.

        Raises:
            UnsupportedDtypeError: the runtime does not support its dtype.
        """
        torch_dtype(stored)
        return self._view(self._buffer(stored.file), stored).view(stored.shape)

    def _view(self, buffer: Tensor, stored: StoredTensor) -> Tensor:
        start = self._places[stored.file][stored]
        return buffer[start : start + prod(stored.shape) * self.dtype.itemsize].view(self.dtype)

    def _plan(self, file: WeightsFile) -> tuple[Tensor, list[Piece]]:
        buffer = torch.empty(self._sizes[file], dtype=torch.uint8, device=self.device)
        tensors = self._places[file]
        return buffer, [Piece(t.offset, torch_dtype(t), self._view(buffer, t)) for t in tensors]
