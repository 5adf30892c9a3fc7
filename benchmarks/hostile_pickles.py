"""Pickles by hand, for the campaign: bombs, allocations, calls, files of other kinds."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

FILE: Final = "pytorch_model.bin"
Change = Callable[[Path], object]
"""Of the folder ``m``."""


def _replaced(write: Callable[[Path], object]) -> Change:
    """The weights are a pickle, and that one is written so."""

    def change(m: Path) -> None:
        for path in (*m.glob("*.safetensors"), *m.glob("*.index.json")):
            path.unlink()
        write(m / FILE)

    return change


def _raw(data: bytes, **records: bytes) -> Change:
    """A zip file of torch.save with this pickle."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            for name, content in ({"0": bytes(16)} | records).items():
                archive.writestr(f"archive/data/{name}", content)

    return _replaced(write)


def _saved(value: Any, **options: Any) -> Change:
    return _replaced(lambda path: torch.save(value, path, **options))


def _bomb(path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as old:
        pickle = old.read(f"{path.stem}/data.pkl")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        with archive.open("archive/data/0", "w") as record:
            for _ in range(128):
                record.write(bytes(1 << 20))


def _bomb_of_instructions(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w") as record,
    ):
        for _ in range(128):
            record.write(b"}" * (1 << 20))


def _lying(path: Path) -> None:
    """Sizes of 2 GiB in a file of a few hundred bytes."""
    torch.save({"a": torch.zeros(1)}, path)
    data = bytearray(path.read_bytes())
    at = 0
    while (at := data.find(b"PK\x01\x02", at + 1)) > 0:
        data[at + 20 : at + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    path.write_bytes(data)


def _long_directory(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(1 << 31)
        file.write(b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 9, 9, (1 << 31) - 4, 4, 0))


def _records(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/a.py"):
            archive.writestr(f"archive/{name}", b"\x80\x02}.")


def _other_order(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/byteorder", b"big")


_NESTED: Final = b"K\x00" + b"\x86".join([b"q\x00h\x00"] * 60) + b"\x86"
"""A tuple whose hash takes 2^60 steps."""
_SHARED: Final = torch.zeros(1 << 16)

CHANGES: Final[tuple[Change, ...]] = (
    *map(_replaced, (_bomb, _bomb_of_instructions, _lying, _long_directory, _records, _other_order)),
    _saved({"a": torch.eye(3).to_sparse()}), _saved({"a": torch.zeros(3)}, _use_new_zipfile_serialization=False),
    _saved({str(i): _SHARED for i in range(5000)}), _saved({"a": torch.zeros(1).expand(1 << 40)}), _saved({"a": torch.eye(3).t()}),
    _saved([torch.zeros(2)]), _saved({"a": {"b": torch.zeros(2)}}), _saved({3: torch.zeros(2)}), _saved({"a": torch.zeros(2, dtype=torch.complex64)}),
    *map(_raw, (
        b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00touch\x85R.", b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x80\x00\x85R.",
        b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b".", b"\x80\x05\x96" + (1 << 31).to_bytes(8, "little") + b".",
        b"\x80\x02Nr\xff\xff\xff\xff.", b"\x80\x02}" + _NESTED + b"Ns.", b"\x80\x02" + b"}" * (1 << 23), b"\x80\x02N" + b"\x85" * (8_000_000) + b".",
        b"\x80\x02" + b"(" * 8_000_000 + b".", b"\x80\x02}" + b"K\x00Ns" * 2_000_000 + b".", b"\x80\x02" + b"N" * 9_000_000 + b".",
        b"\x80\x02I" + b"9" * 1_000_000 + b"\n.", b"\x80\x02\x8b\xff\xff\xff\x7f.", b"\x80\x02(X\x07\x00\x00\x00storageK\x01K\x01K\x01K\x01tQ.",
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\xff\xff\xff\xfftQ.", b"", b".",
        b"\x80\x02ctorch\nTensor\nK\x01\x85R.", b"\x80\x02ctorch.storage\n_load_from_bytes\nN\x85R.",
    )),
)  # fmt: skip
