"""Write a planned shard, in any order, resuming what an earlier attempt wrote."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..regular_file import open_to_write, write_all
from ..safetensors.checksum import checksum_at
from .layout import ShardLayout


class ShardWriter:
    """One planned shard: the header is written first, then tensors at their offsets, in any order and from any thread.

    Disk space is reserved first: a disk that is too small is noticed before any work is done, and writing into allocated
    space takes half the time. Existing contents stay: they come from an earlier attempt with the same layout.
    """

    def __init__(self, folder: Path, layout: ShardLayout) -> None:
        self.layout = layout
        self.path = folder / layout.name
        self._offsets = {t.name: len(layout.header) + t.begin for t in layout.tensors}
        self._sizes = {t.name: t.nbytes for t in layout.tensors}
        self._fd = open_to_write(self.path)
        self._before = os.fstat(self._fd).st_size
        try:
            _reserve(self._fd, layout.nbytes)
            os.ftruncate(self._fd, layout.nbytes)  # padding reads as zeros
            self._write(layout.header, 0)
        except OSError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Release the reserved space, and close."""
        try:
            os.ftruncate(self._fd, self._before)
        finally:
            os.close(self._fd)

    def write(self, tensor: str, data: memoryview, position: int = 0) -> None:
        """Write ``data`` at byte ``position`` of a tensor."""
        self._write(data, self._offsets[tensor] + position)

    def checksum(self, tensor: str) -> str:
        """Checksum of a tensor's bytes as they are in the file."""
        return checksum_at(self._fd, self._offsets[tensor], self._sizes[tensor])

    def flush(self) -> None:
        """Flush what was written so far to disk."""
        os.fdatasync(self._fd)

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


def _reserve(fd: int, nbytes: int) -> None:
    """Reserve disk space for a file, if the file system supports it."""
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


class Flusher:
    """Flushes shards to disk in a separate thread while others are computed; use in a ``with`` statement.

    Raises:
        OSError: on exit, if a flush failed (the system reports that only once).
    """

    _PAUSE: Final = 0.1
    """Seconds."""

    def __init__(self, shards: Sequence[ShardWriter]) -> None:
        self._shards = shards
        self._stop = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        while not self._stop.wait(self._PAUSE):
            for shard in self._shards:
                try:
                    shard.flush()
                except OSError as error:
                    self._error = self._error or error


def write_file(path: Path, data: bytes) -> None:
    """Write a file and flush it to disk."""
    fd = open_to_write(path)
    try:
        os.ftruncate(fd, 0)
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
