"""``int8conv.json``: provenance, inputs and checksums of a converted folder (SPEC.md section 2.2)."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import JsonFileError, UnknownVersionError, UnsafePathError
from ..json_file import MANIFEST, read_json
from .names import MANIFEST_FILE, QUANT_METHOD, VERSION, is_recorded_name


@dataclass(frozen=True)
class InputGroup:
    """The quantized linears that one activation feeds; they share one set of outlier columns."""

    linears: tuple[str, ...]
    in_features: int
    outliers: int
    """k, the number of columns kept in 16 bits."""
    threshold: float | None
    """Magnitude from which the outlier fallback multiplies an activation outside those columns in 16 bits; None: no fallback."""


@dataclass(frozen=True)
class FileRecord:
    """One file of the folder: its size and checksum; for a shard, checksums of its header and of each tensor."""

    bytes: int
    xxh3_128: str
    header_bytes: int | None = None
    tensors: dict[str, str] | None = None


@dataclass(frozen=True)
class Manifest:
    """The manifest's fields; see SPEC.md for their meaning."""

    generator: str
    source: dict[str, Any]
    options: dict[str, Any]
    calibration: dict[str, Any] | None
    inputs: tuple[InputGroup, ...]
    rounded: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object to write; fields that are None in a file record are left out."""
        value: dict[str, Any] = {"format": QUANT_METHOD, "version": VERSION} | asdict(self)
        for name, record in value["files"].items():
            value["files"][name] = {k: v for k, v in record.items() if v is not None}
        return value


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a converted folder.

    Raises:
        NotFoundError: there is none.
        UnknownVersionError: this release does not read its version.
        JsonFileError: a field is absent or of the wrong type.
        UnsafePathError: it names a file outside the folder.
    """
    path = folder / MANIFEST_FILE
    value = read_json(path, limit=MANIFEST, strict=True)
    if value.get("format") != QUANT_METHOD:
        raise JsonFileError("not an int8conv manifest", file=path, expected=f"format {QUANT_METHOD}",
                            found=value.get("format"))  # fmt: skip
    check_version(value.get("version"), path)
    return Manifest(
        generator=_field(value, "generator", str, path),
        source=_field(value, "source", dict, path),
        options=_field(value, "options", dict, path),
        calibration=_nullable(value, "calibration", dict, path),
        inputs=tuple(_group(entry, path) for entry in _field(value, "inputs", list, path)),
        rounded=_field(value, "rounded", int, path),
        skipped=_field(value, "skipped", dict, path),
        files={
            name: _file(name, entry, path)
            for name, entry in _field(value, "files", dict, path).items()
        },
    )  # fmt: skip


def check_version(version: object, file: object) -> None:
    """Raise UnknownVersionError unless this release reads ``version``."""
    if version != VERSION or type(version) is not int:
        raise UnknownVersionError(
            "unknown format version", file=file, expected=VERSION, found=repr(version),
            hint="convert the source again, or use the int8conv release that wrote this",
        )  # fmt: skip


def _field(value: object, name: str, kind: type | tuple[type, ...], path: Path) -> Any:
    found = value.get(name) if isinstance(value, dict) else None
    # every number in the manifest is a count or a magnitude
    negative = isinstance(found, (int, float)) and found < 0
    if not isinstance(found, kind) or isinstance(found, bool) or negative:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise JsonFileError(
            f"field '{name}' is missing or malformed", file=path,
            expected=" or ".join(k.__name__ for k in kinds),
            found=found if negative else type(found).__name__,
        )  # fmt: skip
    return found


def _nullable(value: object, name: str, kind: type | tuple[type, ...], path: Path) -> Any:
    if isinstance(value, dict) and name in value and value[name] is None:
        return None
    return _field(value, name, kind, path)


def _group(entry: object, path: Path) -> InputGroup:
    linears = _field(entry, "linears", list, path)
    if not linears or not all(isinstance(name, str) for name in linears):
        raise JsonFileError("field 'linears' is not a list of module paths", file=path)
    threshold = _nullable(entry, "threshold", (int, float), path)
    if threshold is not None and not threshold <= sys.float_info.max:
        raise JsonFileError("field 'threshold' is not finite", file=path)
    return InputGroup(
        tuple(linears),
        _field(entry, "in_features", int, path),
        _field(entry, "outliers", int, path),
        None if threshold is None else float(threshold),
    )


def _file(name: str, entry: object, path: Path) -> FileRecord:
    if not is_recorded_name(name):
        raise UnsafePathError("names a file outside the folder", file=path,
                              expected="a plain file name", found=repr(name))  # fmt: skip
    shard = isinstance(entry, dict) and "tensors" in entry
    return FileRecord(
        _field(entry, "bytes", int, path),
        _field(entry, "xxh3_128", str, path),
        _field(entry, "header_bytes", int, path) if shard else None,
        _field(entry, "tensors", dict, path) if shard else None,
    )
