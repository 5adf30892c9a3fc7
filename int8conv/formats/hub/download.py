"""Find sources by their id on the Hugging Face hub and download them into the hub library's cache.

The hub library is imported only when the hub is needed. It looks up tokens, resumes files, shows progress bars,
and falls back to its cache when the hub is unreachable.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ... import __version__
from ...errors import ArgumentError, HubNotFoundError, MissingShardError, NotFoundError
from ..int8.names import TEMPLATES_FOLDER
from ..safetensors.storage import WeightsFile
from ..source.checkpoint import CONFIG_FILE
from ..source.index import read_weight_map
from ..source.metadata_files import CODE, NAMES
from ..source.weight_files import (
    FORMATS,
    SAFETENSORS,
    WeightFiles,
    WeightFormat,
    find_weight_files,
    is_weights_name,
    weights_like,
)
from .failures import hub_errors, patiently, quiet_library
from .remote import RemoteFile

_PART: Final = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_ID: Final = re.compile(rf"({_PART}/{_PART})(?:@(\w(?:[\w./+-]*[\w+-])?))?", re.ASCII)

_METADATA_FILES: Final = (
    "*.json", CODE, *NAMES,
)  # fmt: skip


def _folders_but(kept: str) -> list[str]:
    """``fnmatch`` patterns for files in any folder but ``folder``, in its subfolders, and for files that are not templates.

    There is no pattern for "does not start with", so there is one for each position at which a name can differ.
    """
    start = f"{kept}/"
    differ = [f"{start[:i]}[!{c}]*/*" for i, c in enumerate(start)]
    shorter = [f"{start[:i]}/*" for i in range(len(kept))]
    return [*differ, *shorter, f"{start}*/*", f"{start}*[!a]"]


_NEVER: Final = (
    *_folders_but(TEMPLATES_FOLDER), "*.h5.index.json", "*.msgpack.index.json", "*.onnx.index.json",
)  # fmt: skip
"""Subfolders, where repositories keep weights in other formats, and the indexes of those formats."""


@dataclass(frozen=True)
class Source:
    """A checkpoint and its origin."""

    folder: Path
    """The folder on this machine."""
    id: str
    """``org/name`` on the hub, or the name of the folder."""
    revision: str | None = None
    """The commit, for a checkpoint from the hub."""
    remote: Mapping[str, WeightsFile] = field(default_factory=dict)
    """Weights files that stay on the hub, by name."""
    only: str | None = None
    """The weights file or index that was given instead of the folder, if any."""


def resolve(source: str | os.PathLike[str], *, stream: bool = False) -> Source:
    """Resolve a path or hub id to a folder, downloading missing files of a hub checkpoint.

    Args:
        source: the path of a folder, or of a weights file (or index) in one, if it exists; otherwise a hub id ``org/name`` or
            ``org/name@revision``, where the revision is a branch, tag or commit.
        stream: leave the weights of a hub checkpoint on the hub and read them from there, unless all are in the cache.

    Raises:
        NotFoundError: neither an existing path nor a hub id; or a repository without readable weights.
        ArgumentError: ``stream`` is set and the weights are pickles.
        CheckpointError: the index of the weights is malformed.
        HubError: the source is not on the hub, this user has no access, or the hub cannot be reached.
        OutputError: the cache cannot be written to.
    """
    path = Path(source)
    if path.is_file() and is_weights_name(path.name):
        return Source(path.parent, _readable_name(path.parent), only=path.name)
    if path.exists():
        return Source(path, _readable_name(path))
    parsed = parse_id(source) if isinstance(source, str) else None
    if parsed is None:
        raise NotFoundError(
            "no such folder, and not a hub id", file=source,
            hint="expected a Hugging Face checkpoint folder, a weights file, or org/name[@revision]",
        )  # fmt: skip
    with quiet_library(), hub_errors(str(source)):
        return _download(str(source), *parsed, stream=stream)


def _readable_name(folder: Path) -> str:
    """A folder's name as text: a name that is not UTF-8 could not be written to JSON."""
    return os.fsencode(folder.resolve().name).decode("utf-8", "replace")


def resolve_headers(source: str | os.PathLike[str]) -> Source:
    """Like ``resolve``, but for reading headers only: weights are downloaded only if they are pickles."""
    try:
        return resolve(source, stream=True)
    except ArgumentError:
        return resolve(source)


def parse_id(text: str) -> tuple[str, str | None] | None:
    """Repository and revision of ``org/name[@revision]``; None for any other text."""
    match = _ID.fullmatch(text)
    return None if match is None or ".." in text or "//" in text else (match[1], match[2])


def _download(source: str, repository: str, revision: str | None, *, stream: bool) -> Source:
    """Download metadata files first, as they give the commit and the shards; then the weights, by name."""
    folder = _fetch(repository, revision, _METADATA_FILES)
    here = Source(folder, repository, folder.name)  # a snapshot is named after its commit
    cached = _cached(folder)
    if cached and cached.standard and cached.format is SAFETENSORS:
        return here  # without asking the hub again
    try:
        files = _list_files(repository, here.revision)
    except Exception:
        if cached:
            return here
        raise
    kind, shards = _find_weights(source, folder, files)
    if not stream:
        _fetch(repository, here.revision, [glob.escape(name) for name in shards])
        return here
    if kind is not SAFETENSORS:
        raise ArgumentError(
            "only safetensors files can be streamed", file=source, found=shards[0],
            hint="omit --stream to download it",
        )  # fmt: skip
    remote = {
        name: RemoteFile(repository, folder.name, name, files[name].size, _content_id(files[name]))
        for name in shards
    }
    return Source(folder, repository, folder.name, remote)


def _fetch(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The snapshot's folder in the cache, with the matching files that are not in any folder of ``_NEVER``."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        """A bar shown only if stderr is a terminal; the library would always show its count of files."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **({"disable": None} | options))  # type: ignore[no-untyped-call]

    return Path(
        patiently(
            lambda: snapshot_download(
                repository, revision=revision, allow_patterns=list(patterns),
                ignore_patterns=list(_NEVER), library_name="int8conv", library_version=__version__,
                tqdm_class=Bar,
            )
        )
    )  # fmt: skip


def _list_files(repository: str, commit: str | None) -> dict[str, Any]:
    """The library's records of a repository's top-level files, by name."""
    from huggingface_hub import HfApi

    entries = patiently(lambda: list(HfApi().list_repo_tree(repository, revision=commit)))
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}


def _content_id(file: Any) -> str:
    """An id of the content: its SHA-256 if the hub stores it outside git, otherwise git's blob id."""
    return str(file.lfs.sha256 if file.lfs is not None else file.blob_id)


def _cached(folder: Path) -> WeightFiles | None:
    """The weights in the folder, if all of them are present."""
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    try:
        found = find_weight_files(present, folder)
    except (ArgumentError, MissingShardError):  # only some, downloaded by another tool
        return None
    return found if found and present.issuperset(_shards(found, folder)) else None


def _shards(found: WeightFiles, folder: Path) -> list[str]:
    if found.index is None:
        return list(found.names)
    return sorted(set(read_weight_map(folder / found.index).values()))


def _find_weights(
    source: str, folder: Path, files: Collection[str]
) -> tuple[WeightFormat, list[str]]:
    """The best weights in a repository; an incomplete one is refused before anything is downloaded."""
    found = find_weight_files(files, source)
    if found is None:
        raise NotFoundError(
            "no checkpoint in this repository", file=source,
            expected=" or ".join(kind.single for kind in FORMATS), found=weights_like(files),
        )  # fmt: skip
    shards = _shards(found, folder)
    for name in (CONFIG_FILE, *shards):
        if name not in files:
            raise HubNotFoundError(
                "a file is missing from the repository", file=source, expected=name
            )
    return found.format, shards
