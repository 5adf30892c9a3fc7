"""Write a folder whole or not at all: its files grow in a workspace beside it, and one rename shows them.

The workspace of ``OUT`` is ``.OUT.partial``: a lock, whatever its user records there, and ``folder``, which becomes ``OUT``. It
outlives a kill, a full disk or an interrupt, so that the same command can go on; it goes when the folder is in place, or
when the input turns out to be unusable.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...errors import (
    HubError,
    Int8convError,
    NoSpaceError,
    NotFoundError,
    NotWritableError,
    OutputBusyError,
    OutputError,
    OutputExistsError,
)
from .names import MANIFEST_FILE

_LOCK = "lock"


class Workspace:
    """A locked folder beside ``out``; made by ``open_workspace``."""

    def __init__(self, out: Path, *, force: bool) -> None:
        self.out = out
        self._force = force
        self.path = out.with_name(f".{out.name}.partial")
        self.folder = self.path / "folder"
        """Becomes ``out``."""
        self._replaced = self.path / "replaced"
        self._lock = self._acquire()
        if self._replaced.exists():  # killed within ``commit``: before its second rename, or after
            if os.path.lexists(out):
                shutil.rmtree(self._replaced)
            else:
                self._replaced.rename(out)
        self.folder.mkdir(exist_ok=True)

    def clear(self) -> None:
        """Forget what an earlier, other attempt left."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def commit(self) -> None:
        """Flush the folder's entries and rename it to ``out``, which it replaces if that is there."""
        _flush(self.folder)
        check_replaceable(self.out, force=self._force)  # it may have come to be meanwhile
        if os.path.lexists(self.out):
            self.out.rename(self._replaced)
        try:
            self.folder.rename(self.out)
        except OSError:
            if self._replaced.exists():
                self._replaced.rename(self.out)
            raise
        _flush(self.out.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the workspace."""
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._lock)

    def _acquire(self) -> int:
        if self.path.exists() and not (self.path / _LOCK).exists() and any(self.path.iterdir()):
            raise OutputExistsError(
                "stands where the workspace should, and is none", file=self.path
            )
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink == 0:  # its owner finished, and removed it, meanwhile
                raise BlockingIOError
        except BlockingIOError:
            os.close(lock)
            raise OutputBusyError(
                "another conversion is writing this output", file=self.out,
                hint="wait for it, or choose another output",
            ) from None  # fmt: skip
        return lock


@contextlib.contextmanager
def open_workspace(out: Path, *, force: bool = False) -> Iterator[Workspace]:
    """The workspace of ``out``, locked; ``commit`` it within the block.

    It is kept when the block fails for a reason that may pass (an interrupt, a full disk, an unreadable file, the network), and removed
    when the input is at fault. With ``force`` an existing ``out`` may be replaced, if it is a converted folder.

    Raises:
        OutputExistsError: ``out`` exists, and ``force`` is not set or it is not a converted folder.
        OutputBusyError: another process has the workspace.
        NotWritableError: the parent of ``out`` cannot be written to.
        NoSpaceError: the disk filled up within the block.
    """
    check_replaceable(out, force=force)
    out = out.absolute()
    with named_output_errors(out):
        workspace = Workspace(out, force=force)
        try:
            yield workspace
        except Int8convError as error:
            if not isinstance(error, OutputError | NotFoundError | HubError):
                workspace.discard()
            raise
        finally:
            workspace.close()


def check_replaceable(out: Path, *, force: bool) -> None:
    """Raise OutputExistsError unless ``out`` is free, or may be replaced."""
    if not os.path.lexists(out):
        return
    if not force:
        raise OutputExistsError("output exists already", file=out, hint="--force replaces it")
    if out.is_symlink() or not (out / MANIFEST_FILE).is_file():
        raise OutputExistsError(
            "output exists and is not a converted folder; it is not replaced", file=out,
            hint="remove it yourself, or choose another output",
        )  # fmt: skip


@contextlib.contextmanager
def named_output_errors(out: Path) -> Iterator[None]:
    """Turn the operating system's errors of writing into this package's."""
    try:
        yield
    except Int8convError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpaceError(
                "no space left to write it", file=out,
                hint="free some and run the same command again: it goes on from there",
            ) from error  # fmt: skip
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise NotWritableError(f"cannot be written: {error.strerror}", file=out) from error
        raise OutputError(f"cannot be written: {error.strerror}", file=out) from error


def _flush(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
