"""Damage good files on purpose, one thing at a time, and say what the error must name."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from int8conv.errors import Int8convError

Json = dict[str, Any]
Change = Callable[[Json], object]
Piece = tuple[str, str, list[int], bytes]
"""Name, dtype, shape and bytes of a tensor."""

INDEX = "model.safetensors.index.json"
MANIFEST = "int8conv.json"


@contextlib.contextmanager
def rejected(error: type[Int8convError], *named: str) -> Iterator[None]:
    """The block raises exactly this class, and its one-line message has every one of ``named``."""
    with pytest.raises(error) as caught:
        yield
    assert caught.type is error
    message = str(caught.value)
    assert "\n" not in message
    for name in named:
        assert name in message


def read_shard(path: Path) -> tuple[Json, bytes]:
    """Header and payload."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header: Json = json.loads(data[8 : 8 + length])
    return header, data[8 + length :]


def write_raw(path: Path, text: bytes, payload: bytes) -> None:
    """A file with this header text, right or wrong."""
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)


def write_shard(path: Path, header: Json, payload: bytes, *, alignment: int = 4096) -> None:
    text = json.dumps(header).encode()
    write_raw(path, text + b" " * (-(8 + len(text)) % alignment), payload)


def write_pointer(path: Path) -> None:
    """What git leaves of a file that git-lfs has not fetched."""
    oid = "b" * 64
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 545294\n")


def edit_header(path: Path, change: Change, *, alignment: int = 4096) -> None:
    """Rewrite the header; the payload stays."""
    header, payload = read_shard(path)
    change(header)
    write_shard(path, header, payload, alignment=alignment)


def edit_json(path: Path, change: Change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Put bytes over those of a file; its size stays."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def shard_of(folder: Path, tensor: str) -> Path:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    return folder / str(weight_map[tensor])


def payload_offset(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def tensor_bytes(folder: Path, tensor: str) -> bytes:
    header, payload = read_shard(shard_of(folder, tensor))
    begin, end = header[tensor]["data_offsets"]
    return payload[begin:end]


def write_tensor(folder: Path, tensor: str, data: bytes, position: int = 0) -> None:
    """Put bytes over those of a tensor and correct the checksums."""
    path = shard_of(folder, tensor)
    begin = read_shard(path)[0][tensor]["data_offsets"][0]
    overwrite(path, payload_offset(path) + begin + position, data)
    refresh(folder)


def refresh(folder: Path) -> None:
    """Make sizes and checksums of the manifest those of the files."""

    def change(manifest: Json) -> None:
        for name, record in manifest["files"].items():
            data = (folder / name).read_bytes()
            record["bytes"] = len(data)
            if "tensors" not in record:
                record["xxh3_128"] = xxhash.xxh3_128_hexdigest(data)
                continue
            header, payload = read_shard(folder / name)
            record["header_bytes"] = len(data) - len(payload)
            record["xxh3_128"] = xxhash.xxh3_128_hexdigest(data[: record["header_bytes"]])
            record["tensors"] = {
                tensor: xxhash.xxh3_128_hexdigest(payload[slice(*entry["data_offsets"])])
                for tensor, entry in header.items()
                if not tensor.startswith(("__metadata__", "int8conv.padding."))
            }

    edit_json(folder / MANIFEST, change)


def rename_tensor(folder: Path, old: str, new: str) -> None:
    """In header, index and manifest: the folder is whole but for what the name means."""
    path = shard_of(folder, old)

    def in_header(header: Json) -> None:
        entries = [(new if name == old else name, entry) for name, entry in header.items()]
        header.clear()
        header.update(entries)

    def in_index(index: Json) -> None:
        del index["weight_map"][old]
        index["weight_map"][new] = path.name

    edit_header(path, in_header)
    edit_json(folder / INDEX, in_index)
    refresh(folder)


def drop_tensor(folder: Path, tensor: str) -> None:
    """Its bytes become padding."""
    size = len(tensor_bytes(folder, tensor))
    path = shard_of(folder, tensor)

    def in_header(header: Json) -> None:
        entry = header.pop(tensor)
        header["int8conv.padding.9999"] = entry | {"dtype": "U8", "shape": [size]}

    edit_header(path, in_header)
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop(tensor))
    refresh(folder)


def restate_tensor(folder: Path, tensor: str, **fields: object) -> None:
    """Give a tensor another dtype or shape of as many bytes."""
    edit_header(shard_of(folder, tensor), lambda header: header[tensor].update(fields))
    refresh(folder)


def swap_tensors(folder: Path, one: str, other: str) -> None:
    """Exchange the places of two tensors of the same size in a shard."""

    def change(header: Json) -> None:
        a, b = header[one], header[other]
        a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]

    edit_header(shard_of(folder, one), change)
    refresh(folder)


def pieces(path: Path) -> list[Piece]:
    """The tensors of a shard in the order of their bytes, padding included."""
    header, payload = read_shard(path)
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    entries.sort(key=lambda pair: pair[1]["data_offsets"])
    return [
        (name, entry["dtype"], entry["shape"], payload[slice(*entry["data_offsets"])])
        for name, entry in entries
    ]


def write_pieces(path: Path, parts: list[Piece]) -> None:
    """A shard of these tensors, one after the other."""
    header: Json = {"__metadata__": {"format": "int8conv", "version": "1"}}
    payload = b""
    for name, dtype, shape, data in parts:
        offsets = [len(payload), len(payload) + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        payload += data
    write_shard(path, header, payload)


def padding(number: int, size: int) -> Piece:
    return f"int8conv.padding.{number}", "U8", [size], bytes(size)
