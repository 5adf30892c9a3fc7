"""Open regular files and nothing else: no FIFO or device, no link out of a folder, no shared file.

Checkpoints are untrusted, and a workspace may have been tampered with: ``LICENSE`` may be a link to a private file, and a
shard to be written may be a link to, or another name of, somebody else's file.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

_NEVER_WAIT: Final = os.O_NONBLOCK | os.O_CLOEXEC
"""Without O_NONBLOCK, opening a FIFO would block."""
_BLOCK_BYTES: Final = 1 << 20


def open_regular(
    path: str | os.PathLike[str],
    flags: int = os.O_RDONLY,
    *,
    follow: bool = True,
    dir_fd: int | None = None,
) -> int:
    """Open a regular file; returns a descriptor like ``os.open``.

    Args:
        path: the file.
        flags: as for ``os.open``.
        follow: whether the last component of the path may be a symbolic link.
        dir_fd: folder that a relative path starts from.

    Raises:
        OSError: it cannot be opened, is not a regular file, or is a link and ``follow`` is not set; ``strerror`` is fit for
            the user.
    """
    flags |= _NEVER_WAIT | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags, 0o666, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise OSError(errno.ELOOP, "is a symbolic link", str(path)) from None
        if error.errno == errno.ENXIO:  # a FIFO or socket without a reader
            raise OSError(errno.EINVAL, "not a regular file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def open_within(folder: Path, name: str) -> int:
    """Open a file of a folder for reading; links are followed as long as they stay within the folder.

    A snapshot in the hub library's cache consists of links into a sibling folder ``blobs``, which counts as within.

    Raises:
        OSError: as for ``open_regular``; EXDEV for a link that leads out of the folder.
    """
    root = _root(folder)
    target = Path(os.path.realpath(folder / name))
    if not target.is_relative_to(root) or target == root:
        raise OSError(errno.EXDEV, "is a link that leads out of its folder", str(folder / name))
    *folders, last = target.relative_to(root).parts
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:  # one by one, so that a component replaced by a link is not followed
            inner = os.open(
                part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at
            )
            os.close(at)
            at = inner
        return open_regular(last, follow=False, dir_fd=at)
    finally:
        os.close(at)


def _root(folder: Path) -> Path:
    """The folder that links may lead to."""
    real = Path(os.path.realpath(folder))
    repository = real.parent.parent
    in_cache = real.parent.name == "snapshots" and (repository / "blobs").is_dir()
    return repository if in_cache else real


def open_to_write(path: Path) -> int:
    """Open a file for reading and writing that belongs to this program alone, keeping its contents.

    A link, a hard link to another file, or anything that is not a regular file is replaced by a new file.

    Raises:
        OSError: it cannot be opened or created.
    """
    flags = os.O_RDWR | os.O_CREAT
    try:
        fd = open_regular(path, flags, follow=False)
        if os.fstat(fd).st_nlink == 1:
            return fd
        os.close(fd)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL):
            raise
    path.unlink()
    return open_regular(path, flags | os.O_EXCL, follow=False)


def read_at_most(fd: int, nbytes: int) -> bytes:
    """Read up to ``nbytes`` bytes from the descriptor's current position."""
    blocks = []
    while nbytes > 0 and (block := os.read(fd, min(nbytes, _BLOCK_BYTES))):
        blocks.append(block)
        nbytes -= len(block)
    return b"".join(blocks)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data``, even if the system accepts only part of it at a time."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]
