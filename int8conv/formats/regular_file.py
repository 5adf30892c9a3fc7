"""Open regular files, and nothing that a name leads to instead: no FIFO or device, no link out of a folder, nothing shared.

A checkpoint comes from strangers, and a workspace may have been tampered with: ``LICENSE`` may be a link to a private file, a shard
that is to be written a link, or a second name, of somebody else's file.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

_NEVER_WAIT: Final = os.O_NONBLOCK | os.O_CLOEXEC
"""A FIFO would be waited for when it is opened."""
_BLOCK_BYTES: Final = 1 << 20


def open_regular(
    path: str | os.PathLike[str],
    flags: int = os.O_RDONLY,
    *,
    follow: bool = True,
    dir_fd: int | None = None,
) -> int:
    """A descriptor of a regular file, as ``os.open`` gives it.

    Args:
        path: the file.
        flags: as of ``os.open``.
        follow: whether the last part of the path may be a symbolic link.
        dir_fd: what a relative path starts from.

    Raises:
        OSError: it cannot be opened, is no regular file, or is a link that is not to be followed; ``strerror`` says it for a
            user.
    """
    flags |= _NEVER_WAIT | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags, 0o666, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise OSError(errno.ELOOP, "is a symbolic link", str(path)) from None
        if error.errno == errno.ENXIO:  # a FIFO or a socket that nobody reads
            raise OSError(errno.EINVAL, "not a regular file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def open_within(folder: Path, name: str) -> int:
    """A descriptor to read a file of a folder; links are followed as long as they stay within it.

    A snapshot in the hub library's cache is made of links to ``blobs`` beside it, which count as within.

    Raises:
        OSError: as ``open_regular``; EXDEV for a link that leads out of the folder.
    """
    root = _root(folder)
    target = Path(os.path.realpath(folder / name))
    if not target.is_relative_to(root) or target == root:
        raise OSError(errno.EXDEV, "is a link that leads out of its folder", str(folder / name))
    *folders, last = target.relative_to(root).parts
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:  # one by one: a part that becomes a link meanwhile is not followed
            inner = os.open(
                part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at
            )
            os.close(at)
            at = inner
        return open_regular(last, follow=False, dir_fd=at)
    finally:
        os.close(at)


def _root(folder: Path) -> Path:
    """What a folder's links may lead to."""
    real = Path(os.path.realpath(folder))
    repository = real.parent.parent
    in_cache = real.parent.name == "snapshots" and (repository / "blobs").is_dir()
    return repository if in_cache else real


def open_to_write(path: Path) -> int:
    """A descriptor to read and write a file that is this program's alone; what it holds already stays.

    A link, a second name of another file, or something that is no regular file goes, and a new file takes its place.

    Raises:
        OSError: it cannot be opened or made.
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
    """What a file holds from where its descriptor stands, up to so many bytes."""
    blocks = []
    while nbytes > 0 and (block := os.read(fd, min(nbytes, _BLOCK_BYTES))):
        blocks.append(block)
        nbytes -= len(block)
    return b"".join(blocks)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of it, however little the system takes at once."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]
