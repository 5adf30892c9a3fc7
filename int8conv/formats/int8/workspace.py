"""Write a folder atomically: its files grow in a workspace next to it, and one rename publishes them.

The workspace of ``OUT`` is ``.OUT.partial``: a lock, whatever its user records there, and ``folder``, which becomes ``OUT``. It
survives a kill, a full disk or an interrupt, so that the same command can resume; it is removed once the folder is in place, or
if the input turns out to be unusable.

Existing contents are not trusted: links are not followed, and a folder with anything else in it is not a workspace.
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
"""Errors of file systems that cannot flush folders: CIFS, DrvFs, sshfs."""


class Workspace:
    """A locked folder next to ``out``; created by ``open_workspace``."""

    def __init__(self, out: Path, *, force: bool, source: Path | None = None) -> None:
        self.out = out
        self._force, self._source = force, source
        self.path = beside_name(out, ".partial")
        self.folder = self.path / _FOLDER
        """Becomes ``out``."""
        self.notes: list[str] = []
        """Notes on what the file system cannot do."""
        self._replaced = self.path / _REPLACED
        self._owner: bytes | None = None
        """Written into the workspace if there are no locks: if it changes, another process has taken over."""
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
        """Remove what an earlier attempt with other settings left."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def keep_only(self, names: Collection[str]) -> None:
        """Remove files with any other name from the folder: they would become part of the output."""
        for path in list(self.folder.iterdir()):
            if not _is_no_folder(path):
                shutil.rmtree(path)
            elif path.name not in names:
                path.unlink()

    def commit(self) -> None:
        """Flush the folder's entries and rename it to ``out``, replacing an existing one."""
        self._flush(self.folder)
        if self._owner is not None and self._read_owner() != self._owner:
            raise _busy(self.out)
        self._check_output()  # it may have appeared in the meantime
        if os.path.lexists(self.out):
            self.out.rename(self._replaced)
        try:
            if self._replaced.exists():
                check_is_output(self._replaced, self.out)  # checked now that nobody can add to it
            self.folder.rename(self.out)
        except (OSError, OutputError):
            if self._replaced.exists():
                self._replaced.rename(self.out)
            raise
        try:
            self._flush(self.out.parent)
        except OSError as error:  # the output is in place, so this is not an error
            self.notes.append(f"the output may not survive a power loss: {error.strerror}")
        self.discard()

    def discard(self) -> None:
        """Remove the workspace, the lock last, so that what is left is a valid workspace at any time."""
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
        """Release the lock."""
        os.close(self._lock)

    def _check_output(self) -> None:
        check_folder(self.out, force=self._force)
        if self._source is not None:
            check_apart(self.out, self._source)
            check_apart(self.path, self._source)

    def _check(self) -> None:
        """Raise OutputExistsError if the workspace's path exists and is not a workspace."""
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
                "this file system has no locks: do not run another conversion to the same output"
            )
            self._owner = uuid.uuid4().bytes
            write_file(self.path / _OWNER, self._owner)
        if os.fstat(lock).st_nlink == 0:  # its owner has finished and removed it in the meantime
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
        """Recover from an attempt that was killed during ``commit``, before or after its second rename."""
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
            note = "this file system cannot flush folders: the output may not survive a power loss"
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
    """The locked workspace of ``out``; call ``commit`` within the block.

    It is kept if the block fails for a transient reason (an interrupt, a full disk, an unreadable file, the network), and removed
    if the input is at fault. With ``force``, an existing ``out`` is replaced if it is a converted folder.

    Raises:
        OutputExistsError: ``out`` exists, and ``force`` is not set or it is not just a converted folder.
        OutputOverlapError: ``out`` is ``source``, contains it or lies inside one of its files.
        OutputBusyError: another process is using the workspace.
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
