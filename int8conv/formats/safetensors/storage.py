"""The files that weights are read from, local or remote, with explicit reads at offsets.

Reads are explicit because mapped pages would count as memory of this process.
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
        """Fill ``data`` with bytes starting at ``offset``. Threads may share a reader.

        Raises:
            NotFoundError: the bytes cannot be read.
            TruncatedFileError: the file is too short.
        """


class WeightsFile(Protocol):
    """A file with tensors; ``str`` gives its name for error messages."""

    @property
    def name(self) -> str:
        """The last component of its path."""

    def open(self, until: int = 0) -> AbstractContextManager[Reader]:
        """A reader, to be used in a ``with`` statement.

        Args:
            until: where sequential reading from the first offset will end, if known. A remote file is then requested up to
                there at once.

        Raises:
            NotFoundError: the file cannot be opened.
        """

    def size(self) -> int:
        """Size in bytes."""

    def stamp(self) -> object:
        """A JSON value that differs if the contents do."""


@dataclass
class _Seen:
    """The state of a file when it was first opened."""

    stamp: list[int] | None = None


@dataclass(frozen=True)
class LocalFile:
    """A local file: the one that was first opened, not another one that takes its name later."""

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
            FileChangedError: it has changed since it was first opened.
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
        """Raise FileChangedError if the file's bytes have been changed in place since it was first opened.

        Replacing it by another file of the same name does not count: mapped contents stay valid.
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
                            hint="run the command again while nothing writes to the file")  # fmt: skip


def _cannot_be_read(path: Path, error: OSError) -> NotFoundError:
    return NotFoundError(f"cannot be read: {error.strerror}", file=path)


def _stamp(found: os.stat_result) -> list[int]:
    """Changes when the file is replaced or written to."""
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
                    "the file was truncated while it was being read", file=self.path
                )
            data, offset = data[count:], offset + count
