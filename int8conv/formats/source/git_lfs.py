"""Git LFS pointers: small text files in place of large ones that were never fetched (git-lfs, docs/spec.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ...errors import PointerFileError
from ..safetensors.storage import LocalFile, WeightsFile

_MAGIC: Final = b"version https://git-lfs.github.com/spec/"
_MOST_BYTES: Final = 1024
"""Largest size of a pointer, by its specification."""


def check_not_pointer(file: Path | WeightsFile) -> None:
    """Raise PointerFileError if a file is only a Git LFS pointer.

    Raises:
        NotFoundError: it cannot be read.
    """
    stored = LocalFile(file) if isinstance(file, Path) else file
    if not len(_MAGIC) <= stored.size() <= _MOST_BYTES:
        return
    start = bytearray(len(_MAGIC))
    with stored.open(len(_MAGIC)) as reader:
        reader.read_into(memoryview(start), 0)
    if start == _MAGIC:
        raise PointerFileError(
            "the file is only a Git LFS pointer", file=stored,
            hint="run 'git lfs pull' in the repository, or download the file from the hub",
        )  # fmt: skip
