"""The files that weights are read from: explicit reads at offsets, wherever the bytes are.

Reads are explicit because pages of a mapping count as this process's memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ...errors import FileChangedError, NotFoundError, TruncatedFileError
from ..regular_file import open_regular


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


@dataclass
class _Seen:
    """What a file was when it was first opened."""

    stamp: list[int] | None = None


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine: the one that was first opened, and no other that takes its name later."""

    path: Path
    _seen: _Seen = field(default_factory=_Seen, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.path.name

    @contextmanager
    def open(self, until: int = 0) -> Iterator[Reader]:
        with self.descriptor() as fd:
            yield _LocalReader(self.path, fd)

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """A file descriptor, to be used in a ``with`` statement.

        Raises:
            NotFoundError: the file cannot be opened.
            FileChangedError: it is not what it was when it was first opened.
        """
        try:
            fd = open_regular(self.path)
        except OSError as error:
            raise _cannot_be_read(self.path, error) from error
        try:
            self._check(os.fstat(fd))
            yield fd
        finally:
            os.close(fd)

    def check_unchanged(self) -> None:
        """Raise FileChangedError if the file's bytes were changed in place since it was first opened.

        One that another file took the name of is not: what was mapped of it stays.
        """
        stamp = self._seen.stamp
        try:
            found = self._stat()
        except NotFoundError:
            return
        if stamp is not None and found.st_ino == stamp[2]:
            self._check(found)

    def size(self) -> int:
        return self._stat().st_size

    def stamp(self) -> object:
        return _stamp(self._stat())

    def _stat(self) -> os.stat_result:
        try:
            return self.path.stat()
        except OSError as error:
            raise _cannot_be_read(self.path, error) from error

    def _check(self, found: os.stat_result) -> None:
        if self._seen.stamp is None:
            self._seen.stamp = _stamp(found)
        elif self._seen.stamp != _stamp(found):
            raise changed_file(self.path)

    def __str__(self) -> str:
        return str(self.path)


def changed_file(path: Path) -> FileChangedError:
    """The error for a file that was replaced or overwritten while it was in use."""
    return FileChangedError("the file was changed while it was in use", file=path,
                            hint="let nothing write it meanwhile, and run the command again")  # fmt: skip


def _cannot_be_read(path: Path, error: OSError) -> NotFoundError:
    return NotFoundError(f"cannot be read: {error.strerror}", file=path)


def _stamp(found: os.stat_result) -> list[int]:
    """Changes when another file takes the name, and when somebody writes to it."""
    return [found.st_size, found.st_mtime_ns, found.st_ino]


@dataclass(frozen=True)
class _LocalReader:
    path: Path
    fd: int

    def read_into(self, data: memoryview, offset: int) -> None:
        while data:
            try:
                count = os.preadv(self.fd, [data], offset)
            except OSError as error:
                raise _cannot_be_read(self.path, error) from error
            if count == 0:
                raise TruncatedFileError(
                    "the file became shorter while it was read", file=self.path
                )
            data, offset = data[count:], offset + count
