"""Write a folder whole or not at all: files go to a staging folder beside it, are flushed, and one rename shows them."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import NoSpaceError, NotWritableError, OutputError, OutputExistsError
from .layout import ShardLayout
from .names import MANIFEST_FILE


@contextlib.contextmanager
def staged_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A staging folder that becomes ``out`` if the block succeeds, and vanishes if it does not.

    With ``force`` an existing ``out`` is replaced at the end, if it is a converted folder; nothing else is ever removed.

    Raises:
        OutputExistsError: ``out`` exists, and ``force`` is not set or it is not a converted folder.
        NotWritableError: its parent cannot be written to.
        NoSpaceError: the disk filled up within the block.
    """
    check_replaceable(out, force=force)
    out = out.absolute()
    with named_output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = _new_folder_beside(out, "partial")
    try:
        with named_output_errors(out):
            yield staging
            _flush(staging)
            check_replaceable(out, force=force)  # it may have come to be since the check above
            _put_in_place(staging, out)
            _flush(out.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


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
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpaceError("no space left to write it", file=out,
                               hint="nothing was kept; free some space") from error  # fmt: skip
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise NotWritableError(f"cannot be written: {error.strerror}", file=out) from error
        raise OutputError(f"cannot be written: {error.strerror}", file=out) from error


class ShardWriter:
    """One planned shard: the header goes first, tensors at their offsets in any order, from any thread."""

    def __init__(self, folder: Path, layout: ShardLayout) -> None:
        self.layout = layout
        self._offsets = {t.name: len(layout.header) + t.begin for t in layout.tensors}
        self._fd = os.open(folder / layout.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.ftruncate(self._fd, layout.nbytes)  # padding reads as zeros
            self._write(layout.header, 0)
        except OSError:
            os.close(self._fd)
            raise

    def write(self, tensor: str, data: memoryview, position: int = 0) -> None:
        """Put ``data`` at byte ``position`` of a tensor."""
        self._write(data, self._offsets[tensor] + position)

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
    """Write a new file and flush it to disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _new_folder_beside(out: Path, purpose: str) -> Path:
    folder = out.with_name(f".{out.name}.{purpose}-{secrets.token_hex(4)}")
    folder.mkdir()
    return folder


def _flush(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _put_in_place(staging: Path, out: Path) -> None:
    if not os.path.lexists(out):
        staging.rename(out)
        return
    replaced = _new_folder_beside(out, "replaced") / out.name
    try:
        out.rename(replaced)
        try:
            staging.rename(out)
        except OSError:
            replaced.rename(out)
            raise
    except OSError:
        with contextlib.suppress(OSError):
            replaced.parent.rmdir()  # empty, unless the old folder could not be put back
        raise
    shutil.rmtree(replaced.parent, ignore_errors=True)
