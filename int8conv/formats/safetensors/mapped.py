"""Map weights files into memory, and report a file that is truncated while mapped.

A mapping keeps the mapped file alive even if another file takes its name. But truncating that very file removes pages that
the model is about to read, and the system then sends SIGBUS, which cannot be turned into an exception. A program that owns its
process (the command line) can ask for one line and exit code 1 instead (``exit_if_truncated``).
"""

from __future__ import annotations

import mmap
import os
import signal
import weakref
from typing import Any, Final

from ...errors import FileChangedError
from .storage import LocalFile, changed_file

_mapped: Final[weakref.WeakKeyDictionary[mmap.mmap, LocalFile]] = weakref.WeakKeyDictionary()
_handler: list[Any] = []
"""The signal handler; it must outlive every mapping."""
_wanted = False


def map_file(file: LocalFile) -> mmap.mmap:
    """Map a file copy-on-write: torch needs a writable buffer, and the file must never change.

    Raises:
        NotFoundError: the file cannot be opened.
        FileChangedError: it has changed since it was first opened.
    """
    with file.descriptor() as fd:
        mapping = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
    if mapping.size() != len(mapping):
        raise changed_file(file.path)
    _mapped[mapping] = file
    if _wanted and not _handler:
        _install()
    return mapping


def check_length(mapping: mmap.mmap) -> None:
    """Raise FileChangedError if the mapped file, whatever its current name, has become shorter."""
    if mapping.size() < len(mapping):
        raise _shorter(_mapped[mapping])


def exit_if_truncated() -> None:
    """From now on, end this process with one line and exit code 1 if a mapped file is truncated."""
    global _wanted
    _wanted = True


def _shorter(file: LocalFile) -> FileChangedError:
    return FileChangedError("the file was truncated while it was in use", file=file.path,
                            hint="replace it with a new file instead of writing to it")  # fmt: skip


def _install() -> None:
    """The handler runs in the thread that was reading, which is not inside a system call or malloc at that point."""
    import ctypes

    library = ctypes.CDLL(None)

    def on_bus_error(number: int) -> None:
        for mapping, file in list(_mapped.items()):
            if mapping.size() < len(mapping):
                os.write(2, f"int8conv: error: {_shorter(file)}\n".encode(errors="replace"))
                os._exit(1)
        library.signal(number, None)  # not one of our mappings: the default action ends the process
        os.kill(os.getpid(), number)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_bus_error)
    _handler.append(handler)
    library.signal(int(signal.SIGBUS), handler)
