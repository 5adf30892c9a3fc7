"""The index of several weights files, and how to treat discrepancies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...errors import DuplicateTensorError, JsonFileError, MissingTensorError, UnsafePathError
from ..int8.names import is_padding, is_plain_file_name
from ..json_file import INDEX, read_json
from ..safetensors.header import Header
from .weight_files import some


def read_weight_map(path: Path) -> dict[str, str]:
    """Read an index: tensor name to shard file name.

    Raises:
        NotFoundError: there is no such file.
        JsonFileError, UnsafePathError: it is malformed, or names a file outside the folder.
    """
    weight_map = read_json(path, limit=INDEX, strict=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise JsonFileError("no usable weight_map", file=path, expected="tensor name -> file name",
                            found=type(weight_map).__name__)  # fmt: skip
    others = set(map(type, weight_map.values())) != {str}
    for name, shard in weight_map.items() if others else ():
        if not isinstance(shard, str):
            raise JsonFileError("weight_map entry is not a file name", file=path, tensor=name,
                                found=shard)  # fmt: skip
    outside = {shard for shard in set(weight_map.values()) if not is_plain_file_name(shard)}
    for name, shard in weight_map.items() if outside else ():
        if shard in outside:
            raise UnsafePathError("weight_map names a file outside the folder", file=path,
                                  tensor=name, expected="a plain file name", found=repr(shard))  # fmt: skip
    return weight_map


def check_listed(
    headers: Mapping[str, Header], weight_map: Mapping[str, str], index: str | None, folder: Path
) -> None:
    """Raise MissingTensorError if a shard lacks a tensor that the index lists for it."""
    for name, shard in weight_map.items():
        if name not in headers[shard].tensors:
            raise MissingTensorError(
                f"listed in {index}, but not in its shard", file=folder / shard, tensor=name
            )


def shard_of_each(
    headers: Mapping[str, Header], weight_map: Mapping[str, str] | None, folder: Path
) -> tuple[dict[str, str] | None, tuple[str, ...]]:
    """The shard that each tensor is taken from (None: all of each, as the index says, if there is one), and what the user should know.

    As in transformers, an index only says which files there are; their headers say what they contain, and the last file with
    a tensor wins.

    Raises:
        DuplicateTensorError: two files contain the same tensor, and there is no index.
    """
    if _agree(headers, weight_map):
        return None, ()
    found: dict[str, str] = {}
    twice = []
    for shard, header in headers.items():
        if found.keys().isdisjoint(header.tensors):
            found |= dict.fromkeys(header.tensors, shard)
            continue
        for name in header.tensors:
            if name in found:
                if weight_map is None:
                    raise DuplicateTensorError(
                        f"is also in {found[name]}, and no index says which to use", file=folder / shard,
                        tensor=name, hint="merge tensor-parallel shards first",
                    )  # fmt: skip
                twice.append(f"{name} (in {found[name]} and {shard})")
            found[name] = shard
    notes = []
    if twice:
        notes.append(f"tensors in two files (the last one is used): {some(twice)}")
    if weight_map is not None:
        if stale := [name for name in weight_map if name not in found]:
            notes.append(
                f"tensors listed in the index but in no file ({len(stale)}): {some(stale)}"
            )
        if unlisted := [name for name in found if name not in weight_map and not is_padding(name)]:
            notes.append(
                f"tensors used although the index does not list them ({len(unlisted)}): {some(unlisted)}"
            )
    return found, tuple(notes)


def _agree(headers: Mapping[str, Header], weight_map: Mapping[str, str] | None) -> bool:
    """Whether an index lists what its files have, and nothing else; or there is one file, and no index."""
    if weight_map is None:
        return len(headers) == 1
    if len(weight_map) != sum(len(header.tensors) for header in headers.values()):
        return False
    return all(
        {shard}.issuperset(map(weight_map.get, header.tensors)) for shard, header in headers.items()
    )
