"""Write a planned shard, in any order and again where an earlier attempt stopped."""

from __future__ import annotations

import os
from pathlib import Path

from .checksum import checksum_range
from .layout import ShardLayout


class ShardWriter:
    """One planned shard: the header goes first, tensors at their offsets in any order, from any thread.

    What the file holds already stays: of an earlier attempt with the same layout.
    """

    def __init__(self, folder: Path, layout: ShardLayout) -> None:
        self.layout = layout
        self.path = folder / layout.name
        self._offsets = {t.name: len(layout.header) + t.begin for t in layout.tensors}
        self._sizes = {t.name: t.nbytes for t in layout.tensors}
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.ftruncate(self._fd, layout.nbytes)  # padding reads as zeros
            self._write(layout.header, 0)
        except OSError:
            os.close(self._fd)
            raise

    def write(self, tensor: str, data: memoryview, position: int = 0) -> None:
        """Put ``data`` at byte ``position`` of a tensor."""
        self._write(data, self._offsets[tensor] + position)

    def checksum(self, tensor: str) -> str:
        """Of a tensor's bytes as they stand in the file."""
        return checksum_range(self.path, self._offsets[tensor], self._sizes[tensor])

    def close(self) -> None:
        """Flush to disk and close."""
        try:
            os.fsync(self._fd)
        finally:
            os.close(self._fd)

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data).cast("B")
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written


def write_file(path: Path, data: bytes) -> None:
    """Write a file and flush it to disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
