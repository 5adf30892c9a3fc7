"""What an output may replace. Every command that writes checks this before any work and again before replacing anything.

- An output is never the source, a folder that contains it, one of its files, or a path below one of its files, under any name:
  links, hard links, ``..``, another case. It never creates a file that would be taken for weights of the source.
- A folder is replaced only with ``force``, and only if its manifest opens and lists everything in it.
- A file is replaced only by one of the same kind: statistics by statistics, a picture by a picture. Any kind may replace an
  empty file.
- Links are neither replaced nor written through.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import (
    ArgumentError,
    Int8convError,
    MissingShardError,
    NoSpaceError,
    NotWritableError,
    OutputError,
    OutputExistsError,
    OutputOverlapError,
)
from .int8.manifest import read_manifest
from .int8.names import MANIFEST_FILE, TEMPLATES_FOLDER
from .regular_file import open_regular, write_all
from .safetensors.checksum import checksum
from .source.weight_files import WeightFiles, find_weight_files

_NOT_WRITABLE: Final = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT,
)  # fmt: skip
_NAME_BYTES: Final = 255
"""Largest length of a file name in bytes, if the system does not say."""


@dataclass(frozen=True)
class OutputKind:
    """A kind of output file."""

    name: str
    """Name with its article, for messages."""
    matches: Callable[[Path], bool]
    """Whether an existing file is of this kind."""


def check_folder(out: Path, *, force: bool) -> None:
    """Check that a folder may be created at ``out``.

    Raises:
        OutputExistsError: it exists, and ``force`` is not set or it is not just a converted folder.
        OutputError: its name is too long.
    """
    check_name(out)
    if not os.path.lexists(out):
        return
    if not force:
        raise OutputExistsError("output already exists", file=out, hint="--force replaces it")
    check_is_output(out)


def check_is_output(out: Path, name: Path | None = None) -> None:
    """Check that a folder is a converted one with nothing else in it.

    Args:
        out: the folder.
        name: what an error calls it.

    Raises:
        OutputExistsError: it is not.
    """
    name = name or out
    try:
        if out.is_symlink():
            raise NotWritableError("is a symbolic link", file=name)
        known = {MANIFEST_FILE, *read_manifest(out).files}
    except Int8convError as error:
        raise OutputExistsError(
            f"output exists and is not a converted folder, so it is not replaced ({error.problem})", file=name,
            hint="remove it yourself, or choose another output",
        ) from error  # fmt: skip
    foreign = [name for name, is_dir in _entries(out) if name not in known or is_dir]
    if foreign:
        raise OutputExistsError(
            f"output contains files that its {MANIFEST_FILE} does not list, so it is not replaced", file=name,
            found=", ".join(sorted(foreign)[:3]) + ", ..." * (len(foreign) > 3),
            hint="move them elsewhere, or choose another output",
        )  # fmt: skip


def _entries(out: Path) -> Iterator[tuple[str, bool]]:
    """Name of each entry, and whether it is a folder; the folder of chat templates is replaced by its entries."""
    with os.scandir(out) as entries:
        for entry in entries:
            is_dir = entry.is_dir(follow_symlinks=False)
            if is_dir and entry.name == TEMPLATES_FOLDER:
                with os.scandir(entry.path) as templates:
                    for inner in templates:
                        name = f"{TEMPLATES_FOLDER}/{inner.name}"
                        yield name, inner.is_dir(follow_symlinks=False)
            else:
                yield entry.name, is_dir


def check_apart(out: Path, source: Path) -> None:
    """Check that an output (folder or file) cannot damage a source (folder or file).

    Raises:
        OutputOverlapError: ``out`` is the source, contains it or one of its files, or lies below one of its files.
    """
    files = [path for path in source.iterdir() if path.is_file()] if source.is_dir() else []
    itself, above = _stat(out), [_stat(path) for path in _resolved(out).parents]
    for path in (source, *files):
        found = _stat(path)
        what = "the source" if path is source else f"'{path.name}' of the source"
        if _among(itself, [found, *map(_stat, _resolved(path).parents)]):
            relation = "is" if _among(itself, [found]) else "holds"
        elif not path.is_dir() and _among(found, above):
            relation = "lies inside"
        else:
            continue
        raise OutputOverlapError(
            f"output {relation} {what}", file=out, hint="choose another output"
        )


def check_file(out: Path, kind: OutputKind, sources: Iterable[Path] = ()) -> None:
    """Check that a file of that kind may be created at ``out``.

    Raises:
        OutputExistsError: it exists and is another kind of file, or a link.
        OutputOverlapError: it is a file of one of the sources, or would be taken for its weights.
        OutputError: its name is too long.
    """
    check_name(out)
    for source in sources:
        if _same(out, source):
            raise OutputOverlapError("output is the source", file=out, hint="choose another output")
    try:
        found = out.lstat()
    except OSError:  # whether it can be created will show later
        for source in sources:
            _check_no_weights(out, source)
        return
    if stat.S_ISREG(found.st_mode) and (found.st_size == 0 or kind.matches(out)):
        return
    what = "is a symbolic link" if stat.S_ISLNK(found.st_mode) else f"is not {kind.name}"
    raise OutputExistsError(f"output exists and {what}, so it is not replaced", file=out,
                            hint="choose another output")  # fmt: skip


def _check_no_weights(out: Path, folder: Path) -> None:
    if not folder.is_dir() or not _same(out.parent, folder):
        return
    names = [path.name for path in folder.iterdir()]
    if _weights(names) != _weights([*names, out.name]):
        raise OutputOverlapError(
            "output would be taken for weights of the source", file=out,
            hint="choose another name, or another folder",
        )  # fmt: skip


def _weights(names: list[str]) -> WeightFiles | str | None:
    try:
        return find_weight_files(names, "")
    except (ArgumentError, MissingShardError):
        return "unclear"


def write_output(out: Path, data: bytes, kind: OutputKind, sources: Iterable[Path] = ()) -> None:
    """Write a file atomically.

    Raises:
        OutputError: as for ``check_file``, or it cannot be written.
    """
    check_file(out, kind, sources)
    beside = beside_name(out, f".{os.getpid()}.partial")
    with named_output_errors(out):
        fd = open_regular(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, follow=False)
        try:
            try:
                write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            check_file(out, kind, sources)  # it may have appeared in the meantime
            beside.replace(out)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise


def check_name(out: Path) -> None:
    """Raise OutputError if the last component of a path is longer than the system allows."""
    if len(os.fsencode(out.name)) > _longest_name(out.parent):
        raise OutputError("cannot be written: File name too long", file=out)


def beside_name(out: Path, suffix: str) -> Path:
    """A hidden path next to ``out``: its name with a suffix, or a checksum of its name if that would be too long."""
    name = f".{out.name}{suffix}"
    if len(os.fsencode(name)) > _longest_name(out.parent):
        name = f".{checksum(os.fsencode(out.name))}{suffix}"
    return out.with_name(name)


def _longest_name(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except OSError:  # the folder does not exist yet
        return _NAME_BYTES


@contextlib.contextmanager
def named_output_errors(out: Path) -> Iterator[None]:
    """Turn write errors of the operating system into this package's."""
    try:
        yield
    except Int8convError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpaceError(
                "no space left on the device", file=out,
                hint="free some space and run the same command again to resume",
            ) from error  # fmt: skip
        if error.errno in _NOT_WRITABLE:
            raise NotWritableError(f"cannot be written: {error.strerror}", file=out) from error
        raise OutputError(f"cannot be written: {error.strerror}", file=out) from error


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _among(one: os.stat_result | None, others: Iterable[os.stat_result | None]) -> bool:
    """Whether a file is one of several, under any name: links, hard links, another case."""
    return one is not None and any(o is not None and os.path.samestat(one, o) for o in others)


def _same(a: Path, b: Path) -> bool:
    return _among(_stat(a), [_stat(b)])
