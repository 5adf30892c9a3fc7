# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, call-arg"
"""How numba compiles, and where it caches compiled code.

Its own places are ``NUMBA_CACHE_DIR``, ``__pycache__`` beside the code, and the user's cache folder. Where none can be written (a
read-only installation, a home that is nobody's), a folder of this user in the system's temporary one takes their place; else
nothing is kept. A disk that is full costs the next process some seconds, and nothing else.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba
from numba.core.caching import FunctionCache

_OPTIONS: Final[dict[str, Any]] = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}
NOTES: Final[list[str]] = []
"""Notes on compiled code that could not be cached in the default place."""


def compiled(**options: Any) -> Callable[[Any], Any]:  # numba's functions have no types
    """A decorator like ``numba.njit``, with a cache that never fails."""

    def decorate(function: Any) -> Any:
        made = numba.njit(**_OPTIONS, **options)(function)
        if _IS_KEPT:
            made._cache = _Cache(function)
        return made

    return decorate


class _Cache(FunctionCache):
    def save_overload(self, sig: object, data: object) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _note(f"compiled code cannot be kept in {self.cache_path}: {error.strerror}")

    def load_overload(self, sig: object, target_context: object) -> object:
        try:
            return super().load_overload(sig, target_context)
        except OSError:
            return None


def find_place() -> bool:
    """Choose where compiled code is cached; returns whether there is such a place."""
    if _is_usable():
        return True
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    folder = _own_folder()
    if folder is not None:
        numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
        if _is_usable():
            _note(f"compiled code is kept in {folder}: neither {Path(__file__).parent} nor a cache folder of the user can be written")  # fmt: skip
            return True
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]
    _note("compiled code is not kept, and is compiled again by each process: no folder for it can be written; NUMBA_CACHE_DIR names one")  # fmt: skip
    return False


def _is_usable() -> bool:
    try:
        FunctionCache(_is_usable)
    except RuntimeError:  # no locator available
        return False
    return True


def _own_folder() -> Path | None:
    """A folder that no other user can write to, as its contents are executed."""
    folder = Path(tempfile.gettempdir(), f"int8conv-numba-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    is_own = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return folder if is_own and folder.is_dir() and not folder.is_symlink() else None


def _note(text: str) -> None:
    if text not in NOTES:
        NOTES.append(text)


_IS_KEPT: Final = find_place()
