"""Calls into the tokenizers library, whose panics do not derive from Exception and print to stderr."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ...errors import Int8convError, TokenizerError

_REPLAYED: Final = 1 << 20
"""Largest number of bytes of stderr from other threads that a call holds back; the rest is dropped."""


@contextmanager
def unbroken(folder: Path | None, problem: str = "tokenizer files are unusable") -> Iterator[None]:
    """Turn all errors of the tokenizers library in the block into TokenizerError, including panics, without output on stderr.

    A panic in its Rust code is a BaseException but not an Exception, and prints where it happened.
    """
    panicked = False
    _STDERR.hold()
    try:
        yield
    except (Int8convError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # the library raises plain Exception
        panicked = not isinstance(error, Exception)
        raise TokenizerError(f"{problem}: {error}", file=folder) from error
    finally:
        _STDERR.release(drop=panicked)


class _Stderr:
    """File descriptor 2 of the process, redirected to a file while held.

    Output of other threads in the meantime appears when the last holder releases it; after a panic it is lost with the panic's own
    lines.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._drop = False
        self._own = -1
        self._file = -1

    def hold(self) -> None:
        with self._lock:
            self._holders += 1
            if self._holders > 1:
                return
            self._own, self._drop = -1, False
            with suppress(OSError):  # closed, or no space for a file
                self._file = _unnamed_file() if self._file < 0 else self._file
                own = os.dup(2)
                os.dup2(self._file, 2)
                self._own = own

    def release(self, *, drop: bool) -> None:
        with self._lock:
            self._holders -= 1
            self._drop |= drop
            if self._holders or self._own < 0:
                return
            os.dup2(self._own, 2)
            os.close(self._own)
            if size := os.fstat(self._file).st_size:
                held = os.pread(self._file, min(size, _REPLAYED), 0)
                os.lseek(self._file, 0, os.SEEK_SET)
                os.ftruncate(self._file, 0)
                if not self._drop:
                    with suppress(OSError):
                        os.write(2, held)


def _unnamed_file() -> int:
    """A descriptor that stays open for the life of the process."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("int8conv-stderr")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_STDERR: Final = _Stderr()
