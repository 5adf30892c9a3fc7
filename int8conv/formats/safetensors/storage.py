"""The files that weights are read from: explicit reads at offsets, wherever the bytes are.

Reads are explicit because pages of a mapping count as this process's memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...errors import NotFoundError, TruncatedFileError


class Reader(Protocol):
    """An open weights file."""

    def read_into(self, data: memoryview, offset: int) -> None:
        """Fill ``data`` with the bytes from ``offset`` on. Threads may share a reader.

        Raises:
            NotFoundError: the bytes cannot be read.
            TruncatedFileError: the file ends before.
        """


class WeightsFile(Protocol):
    """A file with tensors; ``str`` gives what an error should call it."""

    @property
    def name(self) -> str:
        """The last part of its path."""

    def open(self, until: int = 0) -> AbstractContextManager[Reader]:
        """A reader, to be used in a ``with`` statement.

        Args:
            until: where reading will end, if that is known: from the first offset up to there in order. A file that is far
                away is then asked for all of it at once.

        Raises:
            NotFoundError: the file cannot be opened.
        """

    def size(self) -> int:
        """In bytes."""

    def stamp(self) -> object:
        """Something (as JSON has it) that differs when the contents do."""


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @contextmanager
    def open(self, until: int = 0) -> Iterator[Reader]:
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise NotFoundError(f"cannot be read: {error.strerror}", file=self.path) from error
        try:
            yield _LocalReader(self.path, fd)
        finally:
            os.close(fd)

    def size(self) -> int:
        return self.path.stat().st_size

    def stamp(self) -> object:
        stat = self.path.stat()
        return [stat.st_size, stat.st_mtime_ns]

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class _LocalReader:
    path: Path
    fd: int

    def read_into(self, data: memoryview, offset: int) -> None:
        while data:
            try:
                count = os.preadv(self.fd, [data], offset)
            except OSError as error:
                raise NotFoundError(f"cannot be read: {error.strerror}", file=self.path) from error
            if count == 0:
                raise TruncatedFileError(
                    "the file became shorter while it was read", file=self.path
                )
            data, offset = data[count:], offset + count
