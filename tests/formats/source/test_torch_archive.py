"""Zip files of ``torch.save``: where records are, and that none takes more than the file has."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from int8conv.errors import PickleFileError, TruncatedFileError
from int8conv.formats.source.torch_archive import TorchArchive

from ..damage import overwrite, rejected
from .pickles import write_archive


class Opened:
    """Opens archives, and closes them when the test is over."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def __call__(self, path: Path) -> TorchArchive:
        self.fds.append(os.open(path, os.O_RDONLY))
        return TorchArchive(path, self.fds[-1])


@pytest.fixture
def opened() -> Iterator[Opened]:
    opened = Opened()
    yield opened
    for fd in opened.fds:
        os.close(fd)


def test_records_are_where_torch_puts_them(tmp_path: Path, opened: Opened) -> None:
    torch.save({"a": torch.arange(5.0), "b": torch.ones(3).half()}, tmp_path / "x.bin")
    archive, data = opened(tmp_path / "x.bin"), (tmp_path / "x.bin").read_bytes()
    assert "byteorder" in archive
    assert "data/2" not in archive
    assert archive.read("byteorder", 16) == b"little"
    place = archive.place("data/0")
    assert data[place.begin : place.end] == torch.arange(5.0).numpy().tobytes()
    assert archive.place("data/1").end - archive.place("data/1").begin == 6
    with rejected(PickleFileError, "x.bin", "no record 'data/2'"):
        archive.place("data/2")
    with rejected(PickleFileError, "'byteorder' is too long", "at most 5 bytes, found 6"):
        archive.read("byteorder", 5)


def test_a_zip_bomb_is_refused_unread(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(
        tmp_path / "x.bin", b"N.", {"data/0": bytes(32 << 20)}, zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(zlib, "decompressobj", None)
    with rejected(PickleFileError, str(path), "'data/0' is compressed", "as torch.save writes"):
        opened(path).place("data/0")
    with rejected(PickleFileError, "'data.pkl' is compressed"):
        opened(path).read("data.pkl", 100)


def test_a_size_that_the_file_does_not_have(tmp_path: Path, opened: Opened) -> None:
    path = write_archive(tmp_path / "x.bin", b"N.")
    at = path.read_bytes().rindex(b"PK\x01\x02")
    overwrite(path, at + 20, struct.pack("<II", 1 << 31, 1 << 31))
    with rejected(TruncatedFileError, str(path), "'data/0' extends past the end"):
        opened(path).place("data/0")
    overwrite(path, at + 24, struct.pack("<I", 16))
    with rejected(PickleFileError, "'data/0' is malformed"):
        opened(path).place("data/0")
    overwrite(path, at + 20, struct.pack("<I", 16))
    for offset in (3, 2**31, 2**32 - 2):
        overwrite(path, at + 42, struct.pack("<I", offset))
        with rejected(PickleFileError, "'data/0' is malformed"):
            opened(path).place("data/0")


def test_a_damaged_record(tmp_path: Path, opened: Opened) -> None:
    path = write_archive(tmp_path / "x.bin", b"N.")
    overwrite(path, path.read_bytes().index(b"N."), b"M")
    with rejected(PickleFileError, "'data.pkl' is damaged", "download or copy it again"):
        opened(path).read("data.pkl", 100)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_of_other_kinds(tmp_path: Path, opened: Opened) -> None:
    path = write_archive(tmp_path / "x.bin", b"N.", {"data/0": b"", "constants.pkl": b"N."})
    with rejected(PickleFileError, "a TorchScript program", "torch.jit.load"):
        opened(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"N.")
        file.writestr("a/data.pkl", b"N.")
    with rejected(PickleFileError, "two records have the same name"):
        opened(path)
    write_archive(path, b"N.")
    at = path.read_bytes().rindex(b"PK\x01\x02")
    overwrite(path, at + 8, b"\x01")
    with rejected(PickleFileError, "'data/0' is compressed or encrypted"):
        opened(path).place("data/0")
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with rejected(PickleFileError, "the format of PyTorch before 1.6", "convert it to safetensors"):
        opened(path)
    path.write_bytes(b"<html>")
    with rejected(PickleFileError, "not a PyTorch checkpoint", "starts with b'<htm'"):
        opened(path)


def test_a_long_directory_is_not_read(tmp_path: Path, opened: Opened) -> None:
    """Of a sparse file, which costs its maker nothing."""
    path, nbytes = tmp_path / "x.bin", 1 << 31
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(nbytes)
        file.write(b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 9, 9, nbytes - 4, 4, 0))
    with rejected(PickleFileError, "a directory of more than 4,194,304 bytes"):
        opened(path)
