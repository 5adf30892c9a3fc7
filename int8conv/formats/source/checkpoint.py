"""A Hugging Face checkpoint folder: which tensor lies where, from headers alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import (
    ArgumentError,
    DuplicateTensorError,
    JsonFileError,
    MissingShardError,
    MissingTensorError,
    NotFoundError,
    UnsafePathError,
)
from ..int8.names import is_plain_file_name
from ..json_file import INDEX, read_json
from ..safetensors.header import Header, read_header
from ..safetensors.storage import LocalFile, WeightsFile
from ..safetensors.stored import StoredTensor
from .pickled import read_pickle
from .weight_files import FORMATS, SAFETENSORS, WeightFormat, find_weight_files, weights_like

CONFIG_FILE = "config.json"
INDEX_FILE = SAFETENSORS.index


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder; tensors stand in the order of shards and offsets."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    headers: dict[str, Header]
    """By shard file name."""
    weight_map: dict[str, str] | None
    """Tensor name to shard file name as the index has it; None for a single file without index."""

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    def tensor(self, name: str) -> StoredTensor:
        """The tensor of that name.

        Raises:
            MissingTensorError: there is none.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise MissingTensorError(
                "missing from the checkpoint, but required by the config",
                file=self.folder, tensor=name,
            ) from None  # fmt: skip


def open_checkpoint(
    folder: str | os.PathLike[str],
    remote: Mapping[str, WeightsFile] | None = None,
    only: str | None = None,
) -> Checkpoint:
    """Open a folder with ``config.json`` and safetensors files, or else PyTorch pickles: one, or several.

    Args:
        folder: the folder.
        remote: weights files that belong to it and are elsewhere, by name.
        only: the one to take of several weights files, or indexes of them.

    Raises:
        NotFoundError: no such folder, or no checkpoint in it.
        ArgumentError: it is not clear which weights files are meant.
        CheckpointError: index and shards do not hold together, or a pickle cannot be read safely.
        SafetensorsError: a shard is malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotFoundError(
            "not a folder" if folder.exists() else "no such folder", file=folder,
            hint="expected a Hugging Face checkpoint folder",
        )  # fmt: skip
    files: dict[str, WeightsFile] = {
        path.name: LocalFile(path) for path in folder.iterdir() if path.is_file()
    }
    files |= remote or {}
    found = find_weight_files(files, folder, only)
    if found is None:
        raise NotFoundError(
            "no checkpoint in this folder", file=folder,
            expected=" or ".join(kind.single for kind in FORMATS), found=weights_like(files),
        )  # fmt: skip
    config = read_json(folder / CONFIG_FILE)
    weight_map = read_weight_map(folder / found.index) if found.index else None
    headers = {}
    for shard in sorted(set(weight_map.values())) if weight_map else found.names:
        if shard not in files:
            raise MissingShardError(
                "shard is missing", file=folder / shard,
                expected=f"the file that {found.index} names", hint="download the rest",
            )  # fmt: skip
        headers[shard] = _read_header(found.format, files[shard])
    tensors = _locate(files, headers, weight_map, found.index)
    return Checkpoint(folder, config, tensors, headers, weight_map)


def _read_header(kind: WeightFormat, file: WeightsFile) -> Header:
    if kind is SAFETENSORS:
        return read_header(file)
    if not isinstance(file, LocalFile):
        raise ArgumentError("a PyTorch pickle cannot be streamed", file=file)
    return read_pickle(file.path)


def read_weight_map(path: Path) -> dict[str, str]:
    """Tensor name to shard file name as an index has it.

    Raises:
        NotFoundError: there is no such file.
        JsonFileError, UnsafePathError: it is malformed, or names a file outside the folder.
    """
    weight_map = read_json(path, limit=INDEX, strict=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise JsonFileError("no usable weight_map", file=path, expected="tensor name -> file name",
                            found=type(weight_map).__name__)  # fmt: skip
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise JsonFileError("weight_map entry is not a file name", file=path, tensor=name,
                                found=shard)  # fmt: skip
        if not is_plain_file_name(shard):
            raise UnsafePathError("weight_map names a file outside the folder", file=path,
                                  tensor=name, expected="a plain file name", found=repr(shard))  # fmt: skip
    return weight_map


def _locate(
    files: Mapping[str, WeightsFile],
    headers: dict[str, Header],
    weight_map: dict[str, str] | None,
    index: str | None,
) -> dict[str, StoredTensor]:
    listed = weight_map if weight_map is not None else _first_shards(files, headers)
    tensors = {}
    for shard, header in headers.items():
        for info in header.tensors.values():
            if listed.get(info.name) == shard:
                offset = header.payload_offset + info.begin
                tensors[info.name] = StoredTensor(
                    info.name, info.dtype, info.shape, files[shard], offset, info.nbytes
                )  # fmt: skip
    for name, shard in listed.items():
        if name not in tensors:
            raise MissingTensorError(
                f"listed in {index}, but not in its shard", file=files[shard], tensor=name
            )
    return tensors


def _first_shards(files: Mapping[str, WeightsFile], headers: dict[str, Header]) -> dict[str, str]:
    """The shard of each tensor, where no index says it."""
    listed: dict[str, str] = {}
    for shard, header in headers.items():
        for name in header.tensors:
            if name in listed:
                raise DuplicateTensorError(
                    f"is in {listed[name]} too, and no index says which to use", file=files[shard],
                    tensor=name, hint="merge tensor-parallel shards first",
                )  # fmt: skip
            listed[name] = shard
    return listed
