"""Map weights files into memory, and say so where one becomes shorter under its mapping.

A mapping keeps the file that was mapped: another one may take its name. But whoever makes that very file shorter takes pages away
that the model is about to read, and the system answers with SIGBUS, which no language can turn into an exception. A
program that owns its process (the command line) asks for one line and exit code 1 instead (``exit_if_truncated``).
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
"""What the system calls; it must outlive every mapping."""
_wanted = False


def map_file(file: LocalFile) -> mmap.mmap:
    """A copy-on-write mapping: torch wants a writable buffer, and the file must never change.

    Raises:
        NotFoundError: the file cannot be opened.
        FileChangedError: it is not what it was when it was first opened.
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
    """Raise FileChangedError if the mapped file, whatever it is called now, has become shorter."""
    if mapping.size() < len(mapping):
        raise _shorter(_mapped[mapping])


def exit_if_truncated() -> None:
    """From now on, end this process with one line and exit code 1 where a mapped file has become shorter."""
    global _wanted
    _wanted = True


def _shorter(file: LocalFile) -> FileChangedError:
    return FileChangedError("the file became shorter while it was in use", file=file.path,
                            hint="replace it by a new file instead of writing into it")  # fmt: skip


def _install() -> None:
    """Called by the system in the thread that read, which is in no call of the system's or of malloc then."""
    import ctypes

    library = ctypes.CDLL(None)

    def on_bus_error(number: int) -> None:
        for mapping, file in list(_mapped.items()):
            if mapping.size() < len(mapping):
                os.write(2, f"int8conv: error: {_shorter(file)}\n".encode(errors="replace"))
                os._exit(1)
        library.signal(number, None)  # not ours: it ends the process as it would have
        os.kill(os.getpid(), number)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_bus_error)
    _handler.append(handler)
    library.signal(int(signal.SIGBUS), handler)
