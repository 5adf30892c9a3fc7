"""Git LFS pointers are refused by name; what only resembles one passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from int8conv.errors import NotFoundError, PointerFileError
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.source.git_lfs import check_not_pointer

from ..damage import rejected, write_pointer

MAGIC = b"version https://git-lfs.github.com/spec/"
"""How every version of the specification begins, up to the version itself."""


def test_a_pointer_as_git_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_pointer(path)
    for file in (path, LocalFile(path)):
        with rejected(PointerFileError, str(path), "Git LFS pointer", "git lfs pull"):
            check_not_pointer(file)


@pytest.mark.parametrize(
    "data",
    [
        MAGIC,  # cut off
        MAGIC + b"v2\noid sha256:0\nsize 1\n",  # of a later specification
        MAGIC + b"v1\n" + b"x" * (1024 - len(MAGIC) - 3),  # of the largest size
    ],
    ids=["cut off", "a later version", "1024 bytes"],
)
def test_other_pointers(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with rejected(PointerFileError, str(path)):
        check_not_pointer(path)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"version", MAGIC[:-1], b" " + MAGIC, MAGIC[:-1] + b"x" * 50, b"{}",
        MAGIC + b"x" * (1025 - len(MAGIC)),
    ],
    ids=["empty", "one word", "a byte less", "not at the start", "another path", "JSON", "1025 bytes"],
)  # fmt: skip
def test_what_is_no_pointer(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    check_not_pointer(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with rejected(NotFoundError, str(tmp_path / "absent")):
        check_not_pointer(tmp_path / "absent")
