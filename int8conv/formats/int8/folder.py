"""Open a converted folder and check it against SPEC.md: files, companions, groups, layout. Reads headers and outlier indices only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import (
    CheckpointError,
    CompanionError,
    JsonFileError,
    MissingShardError,
    MissingTensorError,
    NotConvertedError,
    NotFoundError,
    OutlierIndexError,
    TruncatedFileError,
)
from ..hub.download import resolve
from ..json_file import read_json
from ..safetensors.header import Header
from ..safetensors.stored import StoredTensor, read_array
from ..source.checkpoint import CONFIG_FILE, INDEX_FILE, Checkpoint, open_checkpoint
from .layout_check import check_layout
from .manifest import InputGroup, Manifest, check_version, read_manifest
from .names import (
    BIAS,
    MANIFEST_FILE,
    METADATA,
    OUTLIER_INDEX,
    OUTLIER_MULTIPLE,
    OUTLIER_WEIGHT,
    QUANT_METHOD,
    SCALE,
    WEIGHT,
    is_padding,
)
from .section import SECTION, describe_groups, read_groups


@dataclass(frozen=True)
class QuantizedLinear:
    """The tensors of one linear ``[out, in]`` with k outlier columns."""

    path: str
    weight: StoredTensor
    """I8 ``[out, in, 1]``."""
    scale: StoredTensor
    """F32 ``[out]``."""
    outlier_index: StoredTensor | None
    """I32 ``[k]``."""
    outlier_weight: StoredTensor | None
    """F16 or BF16 ``[out, k]``."""
    bias: StoredTensor | None

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def outliers(self) -> int:
        return self.outlier_index.shape[0] if self.outlier_index else 0

    def tensors(self) -> Iterator[StoredTensor]:
        """The tensors that exist, of the five."""
        for t in (self.weight, self.scale, self.outlier_index, self.outlier_weight, self.bias):
            if t is not None:
                yield t


@dataclass(frozen=True)
class ConvertedFolder:
    """A converted folder that has passed every check that needs no payload other than the outlier indices."""

    checkpoint: Checkpoint
    manifest: Manifest
    linears: dict[str, QuantizedLinear]
    """By module path, in file order."""

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def config(self) -> dict[str, Any]:
        return self.checkpoint.config

    def others(self) -> Iterator[StoredTensor]:
        """The tensors that do not belong to a quantized linear."""
        taken = {t.name for linear in self.linears.values() for t in linear.tensors()}
        return (t for t in self.checkpoint.tensors.values() if t.name not in taken)


def is_converted(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder claims to be converted (it may still be malformed)."""
    folder = Path(folder)
    if (folder / MANIFEST_FILE).is_file():
        return True
    try:
        return _quant_method(read_json(folder / CONFIG_FILE)) == QUANT_METHOD
    except (CheckpointError, NotFoundError):
        return False


FolderLike: TypeAlias = "str | os.PathLike[str] | ConvertedFolder"
"""A converted folder, its hub id, or an opened folder."""


def open_folder(path: FolderLike) -> ConvertedFolder:
    """Open a converted folder, downloading it if it is on the hub.

    Raises:
        HubError: it cannot be downloaded.
        The errors of ``open_converted``.
    """
    if isinstance(path, ConvertedFolder):
        return path
    return open_converted(resolve(path).folder)


def open_converted(folder: str | os.PathLike[str]) -> ConvertedFolder:
    """Open a converted folder.

    Raises:
        NotFoundError: there is no such folder, or one of its files is missing.
        NotConvertedError: it is not a converted folder.
        UnknownVersionError: the format version is newer or unknown.
        CheckpointError, SafetensorsError, ConvertedFormatError: a rule of SPEC.md is violated (a subclass for each kind).
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "not a folder" if folder.exists() else "no such folder"
        raise NotFoundError(problem, file=folder, hint="expected a converted folder")
    config = read_json(folder / CONFIG_FILE)
    if _quant_method(config) == QUANT_METHOD and not os.path.lexists(folder / MANIFEST_FILE):
        raise NotConvertedError(
            "not an int8conv folder: no manifest", file=folder, expected=MANIFEST_FILE,
            hint="run 'int8conv adopt' if transformers saved this, or else copy the whole folder",
        )  # fmt: skip
    if _quant_method(config) != QUANT_METHOD or not (folder / MANIFEST_FILE).is_file():
        raise NotConvertedError(
            "not an int8conv folder", file=folder,
            expected=f"quant_method '{QUANT_METHOD}' in {CONFIG_FILE}, and {MANIFEST_FILE}",
            found=f"quant_method {_quant_method(config)!r}", hint="run 'int8conv convert' first",
        )  # fmt: skip
    check_version(config[SECTION].get("version"), folder / CONFIG_FILE)
    manifest = read_manifest(folder)
    if not (folder / INDEX_FILE).is_file():
        raise NotFoundError("no index", file=folder / INDEX_FILE, hint="copy the folder again")
    checkpoint = open_checkpoint(folder, only=INDEX_FILE, exact=True)
    _check_shards(checkpoint, manifest)
    linears = _collect_linears(checkpoint)
    _check_groups(checkpoint, manifest.inputs, linears)
    check_layout(checkpoint, manifest.inputs)
    _check_config_groups(checkpoint, manifest)
    return ConvertedFolder(checkpoint, manifest, linears)


def _quant_method(config: dict[str, Any]) -> object:
    section = config.get(SECTION)
    return section.get("quant_method") if isinstance(section, dict) else None


def _check_shards(checkpoint: Checkpoint, manifest: Manifest) -> None:
    for shard, header in checkpoint.headers.items():
        path = checkpoint.folder / shard
        if header.metadata != METADATA:
            version = header.metadata.get("version")
            if header.metadata.get("format") == QUANT_METHOD and version != METADATA["version"]:
                check_version(version, path)
            raise NotConvertedError(
                "shard was not written by int8conv", file=path,
                expected=f"__metadata__ {METADATA}", found=header.metadata,
            )  # fmt: skip
        record = manifest.files.get(shard)
        if record is None or record.tensors is None:
            raise JsonFileError(f"does not list {shard}", file=checkpoint.folder / MANIFEST_FILE)
        if record.bytes != (size := path.stat().st_size):
            raise TruncatedFileError(
                f"size differs from {MANIFEST_FILE}", file=path,
                expected=f"{record.bytes} bytes", found=f"{size}", hint="copy it again",
            )  # fmt: skip
        _check_listed(checkpoint, shard, header)
    for shard, record in manifest.files.items():
        if record.tensors is not None and shard not in checkpoint.headers:
            raise MissingShardError(f"a shard in {MANIFEST_FILE} is not in {INDEX_FILE}",
                                    file=checkpoint.folder / shard)  # fmt: skip


def _check_listed(checkpoint: Checkpoint, shard: str, header: Header) -> None:
    listed = checkpoint.weight_map or {}
    for name in header.tensors:
        if is_padding(name):
            if name in listed:
                raise JsonFileError("lists padding", file=checkpoint.folder / INDEX_FILE,
                                    tensor=name)  # fmt: skip
        elif listed.get(name) != shard:
            raise MissingTensorError(
                f"{INDEX_FILE} does not list it for this shard",
                file=checkpoint.folder / shard, tensor=name,
            )  # fmt: skip


def _collect_linears(checkpoint: Checkpoint) -> dict[str, QuantizedLinear]:
    tensors = checkpoint.tensors
    linears = {}
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        if kind == WEIGHT and tensor.dtype == "I8":
            _need(tensors, f"{path}.{SCALE}", tensor, "an I8 weight")
            linears[path] = _linear(tensors, path)
        elif kind == SCALE:
            _need(tensors, f"{path}.{WEIGHT}", tensor, "a row scale")
            if (weight := tensors[f"{path}.{WEIGHT}"]).dtype != "I8":
                _reject(weight, "I8", "[out, in, 1]")
        elif kind in (OUTLIER_INDEX, OUTLIER_WEIGHT):
            other = OUTLIER_WEIGHT if kind == OUTLIER_INDEX else OUTLIER_INDEX
            _need(tensors, f"{path}.{other}", tensor, kind)
            _need(tensors, f"{path}.{SCALE}", tensor, kind)
    for path, linear in linears.items():
        _check_linear(path, linear)
    return linears


def _need(tensors: dict[str, StoredTensor], name: str, beside: StoredTensor, what: str) -> None:
    if name not in tensors:
        raise CompanionError(
            f"the companion of {what} is missing", file=beside.file, tensor=beside.name,
            expected=name, found="no such tensor",
        )  # fmt: skip


def _linear(tensors: dict[str, StoredTensor], path: str) -> QuantizedLinear:
    return QuantizedLinear(
        path,
        tensors[f"{path}.{WEIGHT}"],
        tensors[f"{path}.{SCALE}"],
        tensors.get(f"{path}.{OUTLIER_INDEX}"),
        tensors.get(f"{path}.{OUTLIER_WEIGHT}"),
        tensors.get(f"{path}.{BIAS}"),
    )


def _check_linear(path: str, linear: QuantizedLinear) -> None:
    shape = linear.weight.shape
    if len(shape) != 3 or shape[2] != 1:
        _reject(linear.weight, "I8", "[out, in, 1]")
    index = linear.outlier_index
    out, k = shape[0], index.shape[0] if index and index.shape else 0
    wanted: list[tuple[StoredTensor | None, tuple[str, ...], tuple[int, ...]]] = [
        (linear.scale, ("F32",), (out,)),
        (linear.outlier_index, ("I32",), (k,)),
        (linear.outlier_weight, ("F16", "BF16"), (out, k)),
        (linear.bias, ("F16", "BF16", "F32"), (out,)),
    ]
    for tensor, dtypes, expected in wanted:
        if tensor is not None and (tensor.dtype not in dtypes or tensor.shape != expected):
            _reject(tensor, " or ".join(dtypes), str(list(expected)))
    if index is not None and (k == 0 or k % OUTLIER_MULTIPLE):
        raise CompanionError(
            "wrong number of outlier columns", file=linear.weight.file, tensor=f"{path}.{OUTLIER_INDEX}",
            expected=f"a multiple of {OUTLIER_MULTIPLE}", found=k,
        )  # fmt: skip


def _reject(tensor: StoredTensor, dtype: str, shape: str) -> None:
    raise CompanionError(
        "wrong dtype or shape", file=tensor.file, tensor=tensor.name,
        expected=f"{dtype} {shape}", found=f"{tensor.dtype} {list(tensor.shape)}",
    )  # fmt: skip


def _check_groups(
    checkpoint: Checkpoint, groups: tuple[InputGroup, ...], linears: dict[str, QuantizedLinear]
) -> None:
    manifest = checkpoint.folder / MANIFEST_FILE
    grouped = Counter(path for group in groups for path in group.linears)
    for path in grouped:
        if path not in linears:
            raise CompanionError("an input names a linear that does not exist", file=manifest,
                                 tensor=f"{path}.{WEIGHT}")  # fmt: skip
    for path in linears:
        if grouped[path] != 1:
            raise CompanionError(
                "a linear must belong to exactly one input", file=manifest, tensor=f"{path}.{WEIGHT}",
                expected="1 input", found=grouped[path],
            )  # fmt: skip
    for group in groups:
        _check_group(group, linears)


def _check_config_groups(checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Check that the config tells tools without a manifest the same as the manifest."""
    file = checkpoint.folder / CONFIG_FILE
    found = read_groups(checkpoint.config[SECTION], file)
    dtypes = {name: tensor.dtype for name, tensor in checkpoint.tensors.items()}
    if found is None or list(found) == (wanted := describe_groups(manifest.inputs, dtypes)):
        return
    pairs = zip_longest(found, wanted)
    group, expected = next((one, other) for one, other in pairs if one != other)
    raise JsonFileError(f"a group of {SECTION} differs from {MANIFEST_FILE}", file=file,
                        expected=expected, found=group, hint="copy the folder again")  # fmt: skip


def _check_group(group: InputGroup, linears: dict[str, QuantizedLinear]) -> None:
    shared: npt.NDArray[Any] | None = None
    biased = linears[group.linears[0]].bias is not None
    for path in group.linears:
        linear = linears[path]
        if (linear.in_features, linear.outliers) != (group.in_features, group.outliers):
            raise OutlierIndexError(
                "differs from its input's entry in the manifest",
                file=linear.weight.file, tensor=linear.weight.name,
                expected=f"in {group.in_features}, k {group.outliers}",
                found=f"in {linear.in_features}, k {linear.outliers}",
            )  # fmt: skip
        if (linear.bias is not None) != biased:
            raise CompanionError(
                "some linears of the same input have a bias and others do not", file=linear.weight.file,
                tensor=linear.weight.name, expected=f"{'a' if biased else 'no'} bias",
            )  # fmt: skip
        if linear.outlier_index is None:
            continue
        index = read_array(linear.outlier_index)
        _check_index(linear.outlier_index, index, linear.in_features)
        if shared is not None and not np.array_equal(index, shared):
            raise OutlierIndexError(
                "outlier columns differ from those of the linears that share its input",
                file=linear.weight.file, tensor=linear.outlier_index.name,
            )  # fmt: skip
        shared = index


def _check_index(tensor: StoredTensor, index: npt.NDArray[Any], in_features: int) -> None:
    if index.min() < 0 or index.max() >= in_features:
        raise OutlierIndexError(
            "outlier column out of range", file=tensor.file, tensor=tensor.name,
            expected=f"0..{in_features - 1}", found=f"{index.min()}..{index.max()}",
        )  # fmt: skip
    if not (np.diff(index) > 0).all():
        raise OutlierIndexError("outlier columns are not strictly ascending", file=tensor.file,
                                tensor=tensor.name)  # fmt: skip
