"""Safetensors headers: parse with every check of SPEC.md section 3, and build.

A file consists of header length (u64, little-endian), header (JSON) and payload. Offsets in the header are relative to the
payload. No memory is allocated for a length in the file before that length has been checked against the file's size.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...errors import (
    ByteCountError,
    HeaderSyntaxError,
    HeaderTooLongError,
    OffsetError,
    TruncatedFileError,
    UnsupportedDtypeError,
)
from ..json_file import Limit, check_values, unique_fields
from .collection import collection_paused
from .compact import METADATA, MOST_PAYLOAD_BYTES, Entries, bytes_within_limit, read_compact
from .compact import TensorInfo as TensorInfo
from .dtypes import ITEM_BYTES
from .storage import LocalFile, WeightsFile

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
_LIMIT: Final = Limit(MAX_HEADER_BYTES, 8 << 20)
"""Of a header that no usual writer wrote: ten values or so for each tensor."""


@dataclass(frozen=True)
class Header:
    """A parsed header: tensors by name, in the order of their offsets."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)
    payload_offset: int = LENGTH_BYTES
    """File offset of the payload."""


def read_header(file: Path | WeightsFile) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        NotFoundError: the file cannot be opened.
        SafetensorsError: the file is malformed (a subclass for each kind of error).
        HubError: the file is on the hub and cannot be read.
    """
    stored = LocalFile(file) if isinstance(file, Path) else file
    with stored.open() as reader:
        size = stored.size()
        if size < LENGTH_BYTES:
            raise TruncatedFileError(
                "too short for a safetensors file", file=stored,
                expected=f"at least {LENGTH_BYTES} bytes", found=f"{size}",
            )  # fmt: skip
        prefix = bytearray(LENGTH_BYTES)
        reader.read_into(memoryview(prefix), 0)
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER_BYTES:
            raise HeaderTooLongError(
                "header is too long for a safetensors file", file=stored,
                expected=f"at most {MAX_HEADER_BYTES} bytes", found=f"{length}",
            )  # fmt: skip
        if LENGTH_BYTES + length > size:
            raise TruncatedFileError(
                "the file ends within its header", file=stored,
                expected=f"{LENGTH_BYTES + length} bytes", found=f"{size}",
                hint="download or copy it again",
            )  # fmt: skip
        text = bytearray(length)
        reader.read_into(memoryview(text), LENGTH_BYTES)
    return parse_header(text, payload_bytes=size - LENGTH_BYTES - length, file=stored)


@collection_paused()
def parse_header(text: bytes | bytearray, *, payload_bytes: int, file: object) -> Header:
    """Check a header's JSON against a payload of ``payload_bytes`` bytes.

    Raises:
        SafetensorsError: the header is malformed (a subclass for each kind of error).
    """
    decoded = _decode(text, file)
    found = read_compact(decoded)
    if found is None:
        found = _read_any(decoded, file)
        _check_coverage(found.tensors.values(), payload_bytes, file)
    else:
        last = next(reversed(found.tensors.values()))
        if last.end > payload_bytes:
            _check_coverage(found.tensors.values(), payload_bytes, file)  # says which is cut off
        _check_end(last.end, payload_bytes, file)
    metadata = _check_metadata(found.metadata, file)
    return Header(found.tensors, metadata, LENGTH_BYTES + len(text))


def build_header(
    tensors: Sequence[TensorInfo], metadata: Mapping[str, str], *, alignment: int
) -> bytes:
    """A header's length field and JSON, padded with spaces to a multiple of ``alignment`` bytes."""
    entries: dict[str, Any] = {METADATA: dict(metadata)}
    for t in tensors:
        entries[t.name] = {
            "dtype": t.dtype,
            "shape": list(t.shape),
            "data_offsets": [t.begin, t.end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % alignment)
    return struct.pack("<Q", len(text)) + text


def _decode(text: bytes | bytearray, file: object) -> str:
    if not text.startswith(b"{"):
        raise HeaderSyntaxError(
            "not a safetensors file", file=file, expected="a header that starts with '{'",
            found=repr(bytes(text[:1]))[1:],
        )  # fmt: skip
    try:
        return text.decode("utf-8")
    except ValueError as error:
        raise HeaderSyntaxError(f"header is not JSON: {error}", file=file) from error


def _read_any(text: str, file: object) -> Entries:
    """However it is written, as long as it is a header."""
    try:
        check_values(text, _LIMIT)
        entries = json.loads(text, object_pairs_hook=unique_fields)
        "".join(entries).encode()  # JSON allows lone surrogates, which are not valid text
    except (ValueError, RecursionError) as error:
        raise HeaderSyntaxError(f"header is not JSON: {error}", file=file) from error
    metadata = entries.pop(METADATA, {})
    tensors = sorted(
        (_parse_entry(name, entry, file) for name, entry in entries.items()),
        key=lambda tensor: (tensor.begin, tensor.end),
    )
    return Entries({t.name: t for t in tensors}, metadata)


def _check_metadata(metadata: object, file: object) -> dict[str, str]:
    if metadata is None:  # null, which the safetensors library accepts too
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderSyntaxError("__metadata__ is not an object of strings", file=file)
    return metadata


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_PAYLOAD_BYTES


def _parse_entry(name: str, entry: object, file: object) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderSyntaxError(
            "malformed header entry", file=file, tensor=name,
            expected="dtype, shape and data_offsets",
            found=", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__,
        )  # fmt: skip
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise HeaderSyntaxError(
            "malformed shape", file=file, tensor=name, expected="sizes >= 0", found=shape
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise HeaderSyntaxError(
            "malformed data_offsets", file=file, tensor=name,
            expected="two offsets >= 0", found=offsets,
        )  # fmt: skip
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise UnsupportedDtypeError(
            "unsupported dtype", file=file, tensor=name,
            expected=f"one of {', '.join(ITEM_BYTES)}", found=dtype,
        )  # fmt: skip
    begin, end = offsets
    if begin > end:
        raise OffsetError(
            "data_offsets run backwards", file=file, tensor=name, found=f"[{begin}, {end}]"
        )
    needed = bytes_within_limit(dtype, shape)
    if needed is None:
        raise ByteCountError(f"{dtype} of {len(shape)} axes exceeds 2^63 - 1 bytes", file=file,
                             tensor=name, found=f"{list(shape[:8])}{'...' * (len(shape) > 8)}")  # fmt: skip
    if needed != end - begin:
        raise ByteCountError(
            f"{dtype} {list(shape)} does not fit its offsets", file=file, tensor=name,
            expected=f"{needed} bytes", found=f"{end - begin}",
        )  # fmt: skip
    return TensorInfo(name, dtype, tuple(shape), begin, end)


def _check_coverage(tensors: Iterable[TensorInfo], payload_bytes: int, file: object) -> None:
    position = 0
    for t in tensors:
        if t.end > payload_bytes:
            raise TruncatedFileError(
                "offsets extend past the end of the file", file=file, tensor=t.name,
                expected=f"at least {t.end} bytes of payload", found=f"{payload_bytes}",
                hint="the file is truncated: download or copy it again",
            )  # fmt: skip
        if t.begin != position:
            problem = (
                "overlaps the previous tensor" if t.begin < position else "leaves a gap before it"
            )
            raise OffsetError(
                problem, file=file, tensor=t.name, expected=f"begin {position}", found=f"{t.begin}"
            )
        position = t.end
    _check_end(position, payload_bytes, file)


def _check_end(position: int, payload_bytes: int, file: object) -> None:
    if position != payload_bytes:
        raise OffsetError(
            "unused bytes after the last tensor", file=file,
            expected=f"{position} bytes of payload", found=f"{payload_bytes}",
        )  # fmt: skip
