"""A tensor's bytes in a file: which are read, as what, and their checksum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import xxhash

from int8conv.errors import NotFoundError, TruncatedFileError
from int8conv.formats.safetensors import stored
from int8conv.formats.safetensors.dtypes import ITEM_BYTES, byte_count
from int8conv.formats.safetensors.storage import LocalFile
from int8conv.formats.safetensors.stored import (
    StoredTensor,
    read_array,
    read_rows,
    stored_checksum,
)

from ..damage import rejected

DATA = bytes(i * 37 % 251 for i in range(400))


@dataclass(frozen=True)
class Watched:
    """A file in memory that tells what was asked of it."""

    data: bytes = DATA
    name: str = "watched"
    until: list[int] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)

    @contextmanager
    def open(self, until: int = 0) -> Iterator[Watched]:
        self.until.append(until)
        yield self

    def read_into(self, data: memoryview, offset: int) -> None:
        self.reads.append((offset, len(data)))
        data[:] = self.data[offset : offset + len(data)]

    def size(self) -> int:
        return len(self.data)

    def stamp(self) -> object:
        return None


def tensor(dtype: str, *shape: int, offset: int = 8, file: Watched | LocalFile | None = None) -> StoredTensor:  # fmt: skip
    return StoredTensor("x", dtype, shape, file or Watched(), offset, byte_count(dtype, shape))


NUMPY: dict[str, npt.DTypeLike] = {
    "BOOL": np.bool_, "U8": "<u1", "I8": "<i1", "F8_E4M3": "<u1", "F8_E5M2": "<u1", "F8_E8M0": "<u1",
    "I16": "<i2", "U16": "<u2", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "U32": "<u4", "F32": "<f4",
    "I64": "<i8", "U64": "<u8", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
"""What each dtype is read as; floats that numpy does not have, as their bits."""


@pytest.mark.parametrize("dtype", ITEM_BYTES)
@pytest.mark.parametrize("offset", [0, 8, 13])
def test_elements_are_the_bytes_at_the_offset(dtype: str, offset: int) -> None:
    whole = tensor(dtype, 3, 2, 4, offset=offset)
    found = read_array(whole)
    assert found.dtype == np.dtype(NUMPY[dtype])
    assert found.shape == (3, 2, 4)
    assert found.tobytes() == DATA[offset : offset + whole.nbytes]


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 5), (5, 0), (2, 0, 3)])
def test_scalars_and_tensors_without_elements(shape: tuple[int, ...]) -> None:
    found = read_array(tensor("F32", *shape))
    assert found.shape == shape
    assert found.tobytes() == DATA[8 : 8 + found.nbytes]


def test_an_array_is_a_copy_that_may_be_written_to() -> None:
    x = tensor("I8", 4)
    read_array(x)[:] = 0
    assert read_array(x).tobytes() == DATA[8:12]


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 2)])
@pytest.mark.parametrize(("first", "last"), [(0, 6), (0, 1), (2, 5), (5, 6), (3, 3), (6, 6)])
@pytest.mark.parametrize("dtype", ["I8", "F16", "F32"])
def test_rows_are_a_part_of_the_whole(shape: tuple[int, ...], first: int, last: int, dtype: str) -> None:  # fmt: skip
    x = tensor(dtype, *shape)
    np.testing.assert_array_equal(read_rows(x, first, last), read_array(x)[first:last])
    assert read_rows(x, first, last).shape == (last - first, *shape[1:])


def test_only_the_rows_are_read_and_in_one_go() -> None:
    file = Watched()
    read_rows(tensor("F16", 10, 3, file=file), 4, 9)
    assert file.reads == [(8 + 4 * 6, 5 * 6)]


def test_no_rows_of_a_tensor_that_has_none() -> None:
    assert read_rows(tensor("F32", 0, 7), 0, 0).shape == (0, 7)


@pytest.mark.parametrize("nbytes", [0, 1, 6, 7, 8, 13, 14, 15, 50])
def test_the_checksum_is_of_its_own_bytes_block_by_block(
    nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_BLOCK_BYTES", 7)
    file = Watched()
    found = stored_checksum(tensor("U8", nbytes, offset=11, file=file))
    assert found == xxhash.xxh3_128_hexdigest(DATA[11 : 11 + nbytes])
    assert [offset for offset, _ in file.reads] == list(range(11, 11 + nbytes, 7))
    assert sum(count for _, count in file.reads) == nbytes
    assert file.until == [11 + nbytes]  # a file far away is asked for all of it at once


def test_a_file_that_ends_within_the_tensor_or_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(DATA[:20])
    x = tensor("U8", 13, file=LocalFile(path))
    for read in (read_array, stored_checksum, lambda x: read_rows(x, 12, 13)):
        with rejected(TruncatedFileError, str(path)):
            read(x)
    assert read_rows(x, 0, 12).tobytes() == DATA[8:20]
    path.unlink()
    with rejected(NotFoundError, str(path)):
        read_array(x)
