"""The zip files of ``torch.save``: their records are stored uncompressed, so that tensors can be read directly from the file.

A record that is compressed or truncated is refused before any of it is read.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...errors import PickleFileError, TruncatedFileError

CONVERT: Final = "convert it to safetensors if you trust it"
_MAGIC: Final = b"PK\x03\x04"
_OLD_MAGIC: Final = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
"""The beginning of files from ``torch.save`` before version 1.6: a separate pickle with a number."""
_LOCAL: Final = struct.Struct("<4s22xHH")
"""Header of a record: magic number, and lengths of its name and extra field."""
_MOST_DIRECTORY_BYTES: Final = 4 << 20
"""Enough for about 50,000 records."""


class _Bounded(io.FileIO):
    """Refuses to read a long directory."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = _MOST_DIRECTORY_BYTES if size is None or size < 0 else size
        if wanted > _MOST_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of more than {_MOST_DIRECTORY_BYTES:,} bytes")
        return super().read(wanted) or b""


@dataclass(frozen=True)
class Place:
    """Where a record's bytes are in the file."""

    begin: int
    end: int


class TorchArchive:
    """An open zip file of ``torch.save``; records are named without the prefix of the archive's name.

    Args:
        path: file name for errors.
        fd: descriptor of a regular file, which stays open.

    Raises:
        PickleFileError: it is another kind of file or malformed.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path, self._fd = path, fd
        self._nbytes = os.fstat(fd).st_size
        _check_kind(path, os.pread(fd, 16, 0))
        try:
            with _Bounded(fd, closefd=False) as file, zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except Exception as error:  # whatever a malformed file leads to
            raise self._error(f"cannot be read safely: {error}") from error
        self._root = infos[0].filename.partition("/")[0] if infos else ""
        self._records = {info.filename: info for info in infos}
        if len(self._records) != len(infos):
            raise self._error("two records have the same name")
        if f"{self._root}/constants.pkl" in self._records:
            raise self._error(
                "a TorchScript program, not a checkpoint",
                hint="load it with torch.jit.load, and save its state_dict() as safetensors",
            )

    def __contains__(self, name: str) -> bool:
        return f"{self._root}/{name}" in self._records

    def read(self, name: str, most: int) -> bytes:
        """Read a record of at most ``most`` bytes.

        Raises:
            PickleFileError, TruncatedFileError: as for ``place``; or the record is longer, or does not match its checksum.
        """
        place = self.place(name)
        if place.end - place.begin > most:
            raise self._error(f"record '{name}' is too long", expected=f"at most {most:,} bytes",
                              found=f"{place.end - place.begin:,}")  # fmt: skip
        data = os.pread(self._fd, place.end - place.begin, place.begin)
        if zlib.crc32(data) != self._records[f"{self._root}/{name}"].CRC:
            raise self._error(f"record '{name}' is damaged", hint="download or copy it again")
        return data

    def place(self, name: str) -> Place:
        """Where a record's bytes are.

        Raises:
            PickleFileError: there is no such record, or it is compressed or encrypted.
            TruncatedFileError: it extends past the end of the file.
        """
        info = self._records.get(f"{self._root}/{name}")
        if info is None:
            raise self._error(f"no record '{name}'")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise self._error(f"record '{name}' is compressed or encrypted",
                              expected="records as torch.save writes them")  # fmt: skip
        inside = 0 <= info.header_offset <= self._nbytes - _LOCAL.size
        header = os.pread(self._fd, _LOCAL.size, info.header_offset) if inside else b""
        magic, name_bytes, extra_bytes = (
            _LOCAL.unpack(header) if len(header) == _LOCAL.size else (b"", 0, 0)
        )
        if magic != _MAGIC or info.compress_size != info.file_size:
            raise self._error(f"record '{name}' is malformed")
        begin = info.header_offset + _LOCAL.size + name_bytes + extra_bytes
        if begin + info.file_size > self._nbytes:
            raise TruncatedFileError(
                f"record '{name}' extends past the end of the file", file=self._path,
                expected=f"at least {begin + info.file_size} bytes", found=f"{self._nbytes}",
            )  # fmt: skip
        return Place(begin, begin + info.file_size)

    def _error(self, problem: str, **more: Any) -> PickleFileError:
        return PickleFileError(problem, file=self._path, **{"hint": CONVERT} | more)


def _check_kind(path: Path, start: bytes) -> None:
    if start.startswith(_MAGIC):
        return
    if _OLD_MAGIC in start:
        raise PickleFileError("in the format of PyTorch before 1.6", file=path,
                              expected="a zip file of torch.save", hint=CONVERT)  # fmt: skip
    raise PickleFileError("not a PyTorch checkpoint", file=path, expected="a zip file of torch.save",
                          found=f"a file that starts with {start[:4]!r}", hint=CONVERT)  # fmt: skip
