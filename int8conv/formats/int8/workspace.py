"""Write a folder whole or not at all: its files grow in a workspace beside it, and one rename shows them.

The workspace of ``OUT`` is ``.OUT.partial``: a lock, whatever its user records there, and ``folder``, which becomes ``OUT``. It
outlives a kill, a full disk or an interrupt, so that the same command can go on; it goes when the folder is in place, or
when the input turns out to be unusable.

What it finds there it does not trust: links are not followed, and what holds anything else is no workspace.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from ...errors import (
    HubError,
    Int8convError,
    NotFoundError,
    OutputBusyError,
    OutputError,
    OutputExistsError,
)
from ..outputs import beside_name, check_apart, check_folder, check_is_output, named_output_errors
from ..regular_file import open_regular, open_to_write, read_at_most
from .writer import write_file

_LOCK: Final = "lock"
_OWNER: Final = "owner"
_FOLDER: Final = "folder"
_REPLACED: Final = "replaced"
_DISCARDED: Final = "discarded"
"""What was replaced, from when it may be removed: a kill may leave any part of it."""
_FOLDERS: Final = (_FOLDER, _REPLACED, _DISCARDED)
_RECORDS_SUFFIX: Final = ".jsonl"
_NO_FLUSH: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
"""What a file system says that cannot flush folders: CIFS, DrvFs, sshfs."""


class Workspace:
    """A locked folder beside ``out``; made by ``open_workspace``."""

    def __init__(self, out: Path, *, force: bool, source: Path | None = None) -> None:
        self.out = out
        self._force, self._source = force, source
        self.path = beside_name(out, ".partial")
        self.folder = self.path / _FOLDER
        """Becomes ``out``."""
        self.notes: list[str] = []
        """What the file system cannot do."""
        self._replaced = self.path / _REPLACED
        self._owner: bytes | None = None
        """Written into the workspace where there are no locks: another owner took it over if it changes."""
        self._check()
        self._lock = self._acquire()
        try:
            self._recover()
            self._check_output()
            self.folder.mkdir(exist_ok=True)
        except BaseException:
            self.close()
            raise

    def clear(self) -> None:
        """Forget what an earlier, other attempt left."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def keep_only(self, names: Collection[str]) -> None:
        """Remove what the folder holds of any other name: it would become part of the output."""
        for path in list(self.folder.iterdir()):
            if not _is_no_folder(path):
                shutil.rmtree(path)
            elif path.name not in names:
                path.unlink()

    def commit(self) -> None:
        """Flush the folder's entries and rename it to ``out``, which it replaces if that is there."""
        self._flush(self.folder)
        if self._owner is not None and self._read_owner() != self._owner:
            raise _busy(self.out)
        self._check_output()  # it may have come to be meanwhile
        if os.path.lexists(self.out):
            self.out.rename(self._replaced)
        try:
            if self._replaced.exists():
                check_is_output(self._replaced, self.out)  # as nobody can add to it any more
            self.folder.rename(self.out)
        except (OSError, OutputError):
            if self._replaced.exists():
                self._replaced.rename(self.out)
            raise
        try:
            self._flush(self.out.parent)
        except OSError as error:  # the output is in place: no error would be true
            self.notes.append(f"the output may not outlive a power loss: {error.strerror}")
        self.discard()

    def discard(self) -> None:
        """Remove the workspace; the lock last, so that what is left is a workspace at any time."""
        with contextlib.suppress(OSError):
            self._remove_replaced()
            for path in list(self.path.iterdir()):
                if path.name in _FOLDERS:
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != _LOCK:
                    path.unlink()
            (self.path / _LOCK).unlink()
            self.path.rmdir()

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._lock)

    def _check_output(self) -> None:
        check_folder(self.out, force=self._force)
        if self._source is not None:
            check_apart(self.out, self._source)
            check_apart(self.path, self._source)

    def _check(self) -> None:
        """Raise OutputExistsError unless the workspace's place is free, or what is there is a workspace."""
        if not os.path.lexists(self.path):
            return
        foreign = _is_no_folder(self.path)
        names = [] if foreign else [path.name for path in self.path.iterdir()]
        ours = (_LOCK, _OWNER, *_FOLDERS)
        if (
            foreign
            or (names and _LOCK not in names)
            or any(name not in ours and not name.endswith(_RECORDS_SUFFIX) for name in names)
            or any(_is_no_folder(self.path / name) for name in names if name in _FOLDERS)
        ):
            raise OutputExistsError(
                "exists and is not an int8conv workspace", file=self.path,
                hint="remove it yourself, or choose another output",
            )  # fmt: skip

    def _acquire(self) -> int:
        self.path.mkdir(parents=True, exist_ok=True)
        lock = open_to_write(self.path / _LOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise _busy(self.out) from None
        except OSError:  # Lustre without its option, NFS without its daemon
            self.notes.append(
                "this file system has no locks: let no other conversion write the same output"
            )
            self._owner = uuid.uuid4().bytes
            write_file(self.path / _OWNER, self._owner)
        if os.fstat(lock).st_nlink == 0:  # its owner finished, and removed it, meanwhile
            os.close(lock)
            raise _busy(self.out)
        return lock

    def _read_owner(self) -> bytes | None:
        try:
            fd = open_regular(self.path / _OWNER, follow=False)
        except OSError:
            return None
        try:
            return read_at_most(fd, 64)
        finally:
            os.close(fd)

    def _recover(self) -> None:
        """Of an attempt that was killed within ``commit``: before its second rename, or after."""
        if self._replaced.exists():
            if os.path.lexists(self.out):
                check_is_output(self._replaced)
            else:
                self._replaced.rename(self.out)
        self._remove_replaced()

    def _remove_replaced(self) -> None:
        discarded = self.path / _DISCARDED
        if discarded.exists():
            shutil.rmtree(discarded)
        if self._replaced.exists():
            self._replaced.rename(discarded)
            shutil.rmtree(discarded)

    def _flush(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in _NO_FLUSH:
                raise
            note = "this file system cannot flush folders: the output may not outlive a power loss"
            if note not in self.notes:
                self.notes.append(note)
        finally:
            os.close(fd)


def _is_no_folder(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()


def _busy(out: Path) -> OutputBusyError:
    return OutputBusyError("another conversion is writing this output", file=out,
                           hint="wait for it, or choose another output")  # fmt: skip


@contextlib.contextmanager
def open_workspace(
    out: Path, *, force: bool = False, source: Path | None = None
) -> Iterator[Workspace]:
    """The workspace of ``out``, locked; ``commit`` it within the block.

    It is kept when the block fails for a reason that may pass (an interrupt, a full disk, an unreadable file, the network), and removed
    when the input is at fault. With ``force`` an existing ``out`` may be replaced, if it is a converted folder.

    Raises:
        OutputExistsError: ``out`` exists, and ``force`` is not set or it is not a converted folder alone.
        OutputOverlapError: ``out`` is ``source``, holds it or lies inside a file of it.
        OutputBusyError: another process has the workspace.
        NotWritableError: the parent of ``out`` cannot be written to.
        NoSpaceError: the disk filled up within the block.
    """
    if source is not None:
        check_apart(out, source)
    check_folder(out, force=force)
    out = out.absolute()
    with named_output_errors(out):
        workspace = Workspace(out, force=force, source=source)
        try:
            yield workspace
        except Int8convError as error:
            if not isinstance(error, OutputError | NotFoundError | HubError):
                workspace.discard()
            raise
        finally:
            workspace.close()
