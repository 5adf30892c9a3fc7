"""Weights files in the memory of a GPU: one buffer a shard, tensors are views of it, nothing is repacked.

A file passes through a small ring of pinned buffers: while one is copied to the device, the next is read. Peak memory on the
device is the file's size; on the host, the ring's.
"""

from __future__ import annotations

import time
from typing import Any, Final

import torch
from torch import Tensor

from ..formats.checkpoint import StoredTensor
from ..formats.storage import WeightsFile
from .mapping import torch_dtype

RING: Final = 4
"""Buffers: enough for a read and a copy to overlap, and to bridge an uneven one."""
STAGE_BYTES: Final = 32 << 20


class DeviceFiles:
    """Copies each file to the device when a tensor of it is first asked for."""

    def __init__(self, device: torch.device, *, stage_bytes: int = STAGE_BYTES) -> None:
        self.device = device
        self._stage_bytes = stage_bytes
        self._buffers: dict[WeightsFile, Tensor] = {}
        self._ring: list[Tensor] = []
        self.bytes_read = 0
        self.seconds = 0.0

    def tensor(self, stored: StoredTensor) -> Tensor:
        """A view of the stored tensor, in its own dtype and shape."""
        return self.fused([stored])

    def fused(self, parts: list[StoredTensor]) -> Tensor:
        """One view of tensors that lie next to each other, joined along their first axis."""
        first = parts[0]
        dtype = torch_dtype(first)
        shape = (sum(p.shape[0] for p in parts), *first.shape[1:]) if first.shape else ()
        count = sum(p.nbytes for p in parts)
        if count == 0:
            return torch.empty(shape, dtype=dtype, device=self.device)
        part = self._buffer(first.file)[first.offset : first.offset + count]
        if first.offset % dtype.itemsize:  # legal in a foreign file; a view has to be aligned
            part = part.clone()
        return part.view(dtype).view(shape)

    def _buffer(self, file: WeightsFile) -> Tensor:
        if file not in self._buffers:
            started = time.perf_counter()
            self._buffers[file] = self._copied(file)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds += time.perf_counter() - started
            self.bytes_read += self._buffers[file].nbytes
        return self._buffers[file]

    def _copied(self, file: WeightsFile) -> Tensor:
        on_gpu = self.device.type == "cuda"
        size = file.size()
        buffer: Tensor = torch.empty(size, dtype=torch.uint8, device=self.device)
        if not self._ring:
            self._ring = [
                torch.empty(self._stage_bytes, dtype=torch.uint8, pin_memory=on_gpu)
                for _ in range(RING)
            ]
        copied: list[Any] = [torch.cuda.Event() for _ in range(RING)] if on_gpu else []  # type: ignore[no-untyped-call]
        with file.open() as reader:
            for i, start in enumerate(range(0, size, self._stage_bytes)):
                count = min(self._stage_bytes, size - start)
                stage = self._ring[i % RING][:count]
                if on_gpu and i >= RING:
                    copied[i % RING].synchronize()
                reader.read_into(memoryview(stage.numpy()), start)  # type: ignore[arg-type]
                buffer[start : start + count].copy_(stage, non_blocking=on_gpu)
                if on_gpu:
                    copied[i % RING].record()
        return buffer
