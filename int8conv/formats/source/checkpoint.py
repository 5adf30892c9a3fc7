"""A Hugging Face checkpoint folder: where each tensor is, from headers alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import (
    ArgumentError,
    CheckpointError,
    MissingShardError,
    MissingTensorError,
    NotFoundError,
)
from ..json_file import read_json
from ..safetensors.collection import collection_paused
from ..safetensors.dtypes import FP8_DTYPES
from ..safetensors.header import Header, read_header
from ..safetensors.storage import LocalFile, WeightsFile
from ..safetensors.stored import StoredTensor
from .adapter import MERGE, check_not_adapter, is_adapter_name
from .git_lfs import check_not_pointer
from .index import check_listed, read_weight_map, shard_of_each
from .weight_files import (
    FORMATS,
    SAFETENSORS,
    WeightFiles,
    WeightFormat,
    candidates,
    find_weight_files,
    some,
    weights_like,
)

CONFIG_FILE = "config.json"
INDEX_FILE = SAFETENSORS.index


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder; tensors are in the order of shards and offsets."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    headers: dict[str, Header]
    """By shard file name."""
    weight_map: dict[str, str] | None
    """Tensor name to shard file name; None without an index."""
    notes: tuple[str, ...] = ()
    """Notes for the user on what was left out or is irregular."""
    transposed: frozenset[str] = frozenset()
    """Names of matrices stored ``[in, out]``, unlike in other checkpoints of their family."""

    @cached_property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(t.nbytes for t in self.tensors.values())

    @cached_property
    def has_fp8(self) -> bool:
        """Whether any tensor holds 8-bit floats."""
        return any(t.dtype in FP8_DTYPES for t in self.tensors.values())

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


@collection_paused()
def open_checkpoint(
    folder: str | os.PathLike[str],
    remote: Mapping[str, WeightsFile] | None = None,
    only: str | None = None,
    *,
    exact: bool = False,
) -> Checkpoint:
    """Open a folder with ``config.json`` and one or more safetensors files or, failing those, PyTorch pickles.

    Finds the same files as transformers in the same folder.

    Args:
        folder: the folder.
        remote: weights files that belong to it but are stored elsewhere, by name.
        only: the weights file or index to use, if there are several.
        exact: use only what the index lists, and refuse tensors that it lists for a file without them.

    Raises:
        NotFoundError: there is no such folder, or no checkpoint in it.
        ArgumentError: it is ambiguous which weights files are meant.
        CheckpointError: index and shards are inconsistent, a pickle cannot be read safely, or the folder does not hold a
            real checkpoint (a Git LFS pointer, an adapter).
        SafetensorsError: a shard is malformed.
    """
    folder = Path(folder)
    files, dangling = _list_files(folder)
    files |= remote or {}
    found = find_weight_files({*files, *dangling}, folder, only)
    if found is None:
        check_not_adapter(folder, files)
        raise NotFoundError(
            "no checkpoint in this folder", file=folder,
            expected=" or ".join(kind.single for kind in FORMATS), found=weights_like(files),
        )  # fmt: skip
    for name in {CONFIG_FILE, found.index} & dangling.keys():
        raise _dangling(folder / str(name))
    config = read_json(folder / CONFIG_FILE)
    weight_map = read_weight_map(folder / found.index) if found.index else None
    headers = {}
    for shard in sorted(set(weight_map.values())) if weight_map else found.names:
        if shard in dangling:
            raise _dangling(folder / shard)
        if shard not in files:
            raise MissingShardError(
                "shard is missing", file=folder / shard,
                expected=f"the file that {found.index} names", hint="download the rest",
            )  # fmt: skip
        headers[shard] = _read_header(found.format, files[shard])
    if exact:
        listed = weight_map or {}
        check_listed(headers, listed, found.index, folder)
        return Checkpoint(folder, config, _locate(files, headers, listed), headers, weight_map)
    taken, notes = shard_of_each(headers, weight_map, folder)
    notes += _left_out(folder, found, files, headers)
    tensors = _locate(files, headers, taken)
    return Checkpoint(folder, config, tensors, headers, weight_map and (taken or weight_map), notes)


def _list_files(folder: Path) -> tuple[dict[str, WeightsFile], dict[str, str]]:
    """The files of a folder by name, and its dangling links with their targets."""
    if not folder.is_dir():
        raise NotFoundError(
            "not a folder" if folder.exists() else "no such folder", file=folder,
            hint="expected a Hugging Face checkpoint folder",
        )  # fmt: skip
    files: dict[str, WeightsFile] = {}
    dangling = {}
    try:
        for path in folder.iterdir():
            if path.is_file():
                files[path.name] = LocalFile(path)
            elif path.is_symlink() and not path.exists():
                dangling[path.name] = str(path)
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", file=folder) from error
    return files, dangling


def _dangling(path: Path) -> NotFoundError:
    return NotFoundError(
        "is a link to a file that does not exist", file=path, found=path.readlink(),
        hint="download it again",
    )  # fmt: skip


def _read_header(kind: WeightFormat, file: WeightsFile) -> Header:
    check_not_pointer(file)
    if kind is SAFETENSORS:
        return read_header(file)
    if not isinstance(file, LocalFile):
        raise ArgumentError("a PyTorch pickle cannot be streamed", file=file)
    from .pickled import read_pickle  # few checkpoints have one

    return read_pickle(file)


def _locate(
    files: Mapping[str, WeightsFile],
    headers: Mapping[str, Header],
    shards: Mapping[str, str] | None,
) -> dict[str, StoredTensor]:
    """The tensors in the order of shards and offsets, each from the shard that is to be taken; None: all there are."""
    found: dict[str, StoredTensor] = {}
    new = tuple.__new__  # a third of the time that the class takes
    for shard, header in headers.items():
        file, start = files[shard], header.payload_offset
        part = {
            name: new(StoredTensor, (name, dtype, shape, file, start + begin, end - begin))
            for name, dtype, shape, begin, end in header.tensors.values()
            if shards is None or shards.get(name) == shard
        }
        if found:
            found |= part
        else:  # as it mostly is: no copy
            found = part
    return found


def _left_out(
    folder: Path, found: WeightFiles, files: Mapping[str, WeightsFile], taken: Mapping[str, Header]
) -> tuple[str, ...]:
    """Notes on weights in the folder that are not used."""
    others = [name for name in candidates(files, found.format) if name not in taken]
    if found.index is None and found.format.index in files:
        try:
            index = set(read_weight_map(folder / found.format.index).values())
        except CheckpointError:
            index = set()
        if index != taken.keys():
            others.insert(0, found.format.index)
    notes = []
    if others:
        weights = found.index or some(found.names)
        notes.append(f"using the weights in {weights}; left out: {some(sorted(others))}")
    if adapters := [name for name in files if is_adapter_name(name)]:
        notes.append(
            f"an adapter next to the weights is left out: {some(sorted(adapters))}; {MERGE}"
        )
    return tuple(notes)
