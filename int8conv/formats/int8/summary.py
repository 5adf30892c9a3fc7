"""The contents of a converted folder by kind and by layer, compared with the same parameters in 16 bits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

from ..safetensors.dtypes import FLOAT_DTYPES
from ..safetensors.stored import StoredTensor
from .folder import ConvertedFolder, FolderLike, open_folder
from .names import OUTLIER_INDEX, OUTLIER_WEIGHT, SCALE, WEIGHT, is_padding

_LAYER: Final = re.compile(r"\.([0-9]{1,9})\.")
_KINDS: Final = {
    SCALE: "row scales",
    OUTLIER_INDEX: "outlier indices",
    OUTLIER_WEIGHT: "outlier columns",
}
_OUTSIDE: Final = "outside layers"


@dataclass
class Row:
    """Sums over some tensors; sizes in bytes."""

    label: str
    tensors: int = 0
    nbytes: int = 0
    nbytes_16bit: int = 0
    """Size of the same parameters at two bytes each; what the format adds counts as 0."""
    linears: int = 0
    outliers: list[tuple[int, int]] = field(default_factory=list)
    """For each input of the layer: columns kept in 16 bits, and all columns."""
    _dtypes: set[str] = field(default_factory=set)

    @property
    def dtypes(self) -> str:
        return " ".join(sorted(self._dtypes))

    def add(self, tensor: StoredTensor, nbytes_16bit: int) -> None:
        self.tensors += 1
        self.nbytes += tensor.nbytes
        self.nbytes_16bit += nbytes_16bit
        self._dtypes.add(tensor.dtype)


@dataclass(frozen=True)
class FolderSummary:
    """The sums, and the tensors they cover, in file order."""

    model_type: str | None
    source: str | None
    """Hub id or folder name of the source."""
    generator: str
    """The program that wrote the folder."""
    kinds: list[Row]
    layers: list[Row]
    total: Row
    tensors: list[StoredTensor]

    @property
    def ratio(self) -> float:
        """Size relative to 16 bits."""
        return self.total.nbytes / self.total.nbytes_16bit

    def to_json(self) -> dict[str, Any]:
        """All figures, and the dtype, shape and size of every tensor."""

        def row(r: Row) -> dict[str, Any]:
            return {"tensors": r.tensors, "bytes": r.nbytes, "bytes_16bit": r.nbytes_16bit}

        return {
            "kinds": {r.label: row(r) | {"dtypes": r.dtypes.split()} for r in self.kinds},
            "layers": {
                r.label: row(r) | {"linears": r.linears, "outliers": r.outliers} for r in self.layers
            },
            "total": row(self.total),
            "ratio": self.ratio,
            "tensors": {
                t.name: {"dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes, "file": t.file.name}
                for t in self.tensors
            },
        }  # fmt: skip


def inspect_folder(path: FolderLike) -> FolderSummary:
    """Summarize the contents of a converted folder from its headers.

    Args:
        path: the folder, its hub id, or an opened folder.

    Raises:
        NotFoundError, HubError: there is no such folder.
        NotConvertedError: it is not a converted folder.
        CheckpointError, SafetensorsError, ConvertedFormatError: it is malformed.
    """
    converted = open_folder(path)
    tensors = list(converted.checkpoint.tensors.values())
    kinds: dict[str, Row] = {}
    layers: dict[str, Row] = {}
    total = Row("total")
    for tensor in tensors:
        kind, nbytes_16bit = _classify(tensor, converted)
        layer = layer_of(tensor.name)
        for rows, label in ((kinds, kind), (layers, _OUTSIDE if layer is None else str(layer))):
            rows.setdefault(label, Row(label)).add(tensor, nbytes_16bit)
        total.add(tensor, nbytes_16bit)
    padding = Row("padding", nbytes=_padding_bytes(converted), _dtypes={"U8"})
    total.nbytes += padding.nbytes
    for group in converted.manifest.inputs:
        layer = layer_of(group.linears[0])
        row = layers[_OUTSIDE if layer is None else str(layer)]
        row.linears += len(group.linears)
        row.outliers.append((group.outliers, group.in_features))
    ordered = sorted(layers.values(), key=lambda r: (r.label == _OUTSIDE, _number(r.label)))
    manifest = converted.manifest
    return FolderSummary(
        _text(converted.config.get("model_type")), _text(manifest.source.get("id")), manifest.generator,
        [*kinds.values(), padding], ordered, total, tensors,
    )  # fmt: skip


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor or module belongs to."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def _classify(tensor: StoredTensor, converted: ConvertedFolder) -> tuple[str, int]:
    """Kind, and size of the same parameters in 16 bits."""
    path, _, last = tensor.name.rpartition(".")
    quantized = tensor.dtype == "I8" and last == WEIGHT and path in converted.linears
    if quantized:
        nbytes = 2 * tensor.nbytes
    elif last in _KINDS:
        nbytes = 0
    else:
        nbytes = 2 * prod(tensor.shape) if tensor.dtype in FLOAT_DTYPES else tensor.nbytes
    return kind_of(tensor.name, tensor.dtype, quantized=quantized), nbytes


def kind_of(name: str, dtype: str, *, quantized: bool) -> str:
    """The kind of a tensor of a converted folder, for display; ``quantized``: whether it holds the codes of a linear."""
    if quantized:
        return "int8 weights"
    if (kind := _KINDS.get(name.rpartition(".")[2])) is not None:
        return kind
    if dtype not in FLOAT_DTYPES:
        return "integers and masks"
    return "kept in 32 bits" if dtype == "F32" else "kept in 16 bits"


def _padding_bytes(converted: ConvertedFolder) -> int:
    headers: Iterable[Any] = converted.checkpoint.headers.values()
    infos = [info for header in headers for info in header.tensors.values()]
    return sum(info.nbytes for info in infos if is_padding(info.name))


def _number(label: str) -> int:
    return int(label) if label.isdecimal() else 0
