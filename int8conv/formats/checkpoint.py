"""A Hugging Face checkpoint folder: which tensor lies where, from headers alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import (
    ArgumentError,
    JsonFileError,
    MissingShardError,
    MissingTensorError,
    NotFoundError,
    UnsafePathError,
)
from .header import Header, read_header
from .json_file import read_json
from .names import is_plain_file_name
from .pickled import read_pickle
from .storage import LocalFile, WeightsFile

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor's bytes are."""

    name: str
    dtype: str
    """Safetensors name: F16, BF16, F32, I8, ..."""
    shape: tuple[int, ...]
    file: WeightsFile
    offset: int
    """Of the first byte, from the start of the file."""
    nbytes: int


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
                "absent from the checkpoint, but the config asks for it",
                file=self.folder, tensor=name,
            ) from None  # fmt: skip


def open_checkpoint(
    folder: str | os.PathLike[str], remote: Mapping[str, WeightsFile] | None = None
) -> Checkpoint:
    """Open a folder with ``config.json`` and safetensors files (one, or several with an index), or else PyTorch pickles.

    Args:
        folder: the folder.
        remote: weights files that belong to it and are elsewhere, by name.

    Raises:
        NotFoundError: no such folder, or no checkpoint in it.
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
    kind = _find_kind(folder, files)
    weight_map = read_weight_map(folder / kind.index)
    config = read_json(folder / CONFIG_FILE)
    shards = sorted(set(weight_map.values())) if weight_map is not None else [kind.single]
    headers = {}
    for shard in shards:
        if shard not in files:
            raise MissingShardError(
                "shard is missing", file=folder / shard,
                expected=f"the file that {kind.index} names", hint="download the rest",
            )  # fmt: skip
        headers[shard] = kind.read(files[shard])
    tensors = _locate(files, headers, weight_map, kind.index)
    return Checkpoint(folder, config, tensors, headers, weight_map)


@dataclass(frozen=True)
class Kind:
    """A kind of weights file."""

    index: str
    single: str
    read: Callable[[WeightsFile], Header]


def _read_pickle(file: WeightsFile) -> Header:
    if not isinstance(file, LocalFile):
        raise ArgumentError("a pickle cannot be read from afar", file=file)
    return read_pickle(file.path)


KINDS = (
    Kind(INDEX_FILE, SINGLE_FILE, read_header),
    Kind("pytorch_model.bin.index.json", "pytorch_model.bin", _read_pickle),
)
"""The first that a folder has is taken."""


def _find_kind(folder: Path, files: Mapping[str, WeightsFile]) -> Kind:
    for kind in KINDS:
        if kind.index in files or kind.single in files:
            return kind
    raise NotFoundError(
        "no checkpoint in this folder", file=folder,
        expected=f"{SINGLE_FILE}, {INDEX_FILE} or {KINDS[-1].single}", found=_weights_like(folder),
    )  # fmt: skip


def _weights_like(folder: Path) -> str:
    kinds = {".safetensors", ".bin", ".pth", ".pt", ".gguf"}
    names = sorted(p.name for p in folder.iterdir() if p.suffix in kinds)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "no weights"


def read_weight_map(path: Path) -> dict[str, str] | None:
    """Tensor name to shard file name as an index has it; None if there is no such file.

    Raises:
        JsonFileError, UnsafePathError: it is malformed, or names a file outside the folder.
    """
    if not path.is_file():
        return None
    weight_map = read_json(path, strict=True).get("weight_map")
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
    index: str,
) -> dict[str, StoredTensor]:
    listed = weight_map
    if listed is None:
        listed = {name: shard for shard, header in headers.items() for name in header.tensors}
    tensors = {}
    for shard, header in headers.items():
        for info in header.tensors.values():
            if listed.get(info.name) == shard:
                offset = header.payload_offset + info.begin
                tensors[info.name] = StoredTensor(
                    info.name,
                    info.dtype,
                    info.shape,
                    files[shard],
                    offset,
                    info.nbytes,
                )
    for name, shard in listed.items():
        if name not in tensors:
            raise MissingTensorError(
                f"listed in {index}, but not in its shard", file=files[shard], tensor=name
            )
    return tensors
