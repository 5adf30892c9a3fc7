"""Sources that are named by their id on the Hugging Face hub: found and downloaded into the hub library's own cache.

The library is imported only when there is something to download. It looks up tokens, resumes files and draws its bars.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from .. import __version__
from ..errors import (
    HubAccessError,
    HubNotFoundError,
    HubUnavailableError,
    Int8convError,
    NoSpaceError,
    NotFoundError,
    NotWritableError,
)
from .checkpoint import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from .json_file import read_json
from .names import is_plain_file_name

_Result = TypeVar("_Result")

_PART: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_ID: Final = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9_](?:[\w./+-]*[\w+-])?))?", re.ASCII)
_LONGEST_ID: Final = 96

_SMALL_FILES: Final = (
    "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_NEVER: Final = ("*/*", "*.bin.index.json", "*.h5.index.json", "*.msgpack.index.json")
"""Folders, in which repositories keep their weights in other formats, and those formats' indexes."""

_WAITS: Final = (1, 2, 4)
"""Seconds before each further attempt; the library makes its own as well, but not for every request."""
_LONGEST_WAIT: Final = 60
_PASSING_STATUS: Final = {408, 429, 500, 502, 503, 504}
_PASSING_FAULTS: Final = {"ReadError", "ReadTimeout", "RemoteProtocolError", "ChunkedEncodingError"}
"""By name, for the library has changed the HTTP client whose errors these are, and may again."""


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine, and where it is from."""

    folder: Path
    id: str
    """``org/name`` on the hub, or the folder's name."""
    revision: str | None = None
    """The commit, for a checkpoint from the hub."""


def resolve(source: str | os.PathLike[str]) -> Source:
    """The folder that a path or hub id means; what it lacks of a hub checkpoint is downloaded.

    Args:
        source: a path, which wins if it exists; else a string ``org/name`` or ``org/name@revision``, the revision being a
            branch, a tag or a commit.

    Raises:
        NotFoundError: neither a path that exists nor the form of a hub id; a repository without safetensors weights.
        HubError: not on the hub, not open to this user, or not to be reached.
        OutputError: the cache cannot be written to.
    """
    path = Path(source)
    if path.exists():
        return Source(path, path.resolve().name)
    parsed = parse_id(source) if isinstance(source, str) else None
    if parsed is None:
        raise NotFoundError(
            "no such folder, and not a hub id either", file=source,
            hint="expected a Hugging Face checkpoint folder, or org/name[@revision]",
        )  # fmt: skip
    repository, revision = parsed
    folder = _download(str(source), repository, revision)
    return Source(folder, repository, folder.name)


def parse_id(text: str) -> tuple[str, str | None] | None:
    """Repository and revision of ``org/name[@revision]``; None for any other text."""
    match = _ID.fullmatch(text)
    if match is None or ".." in text or "//" in text:
        return None
    repository, revision = match[1], match[2]
    if len(repository) > _LONGEST_ID or "--" in repository or repository.endswith(".git"):
        return None  # the hub has no such names
    return repository, revision


def _download(source: str, repository: str, revision: str | None) -> Path:
    """Small files first, then those weights that the index names; the snapshot's folder, which is called as the commit."""
    from huggingface_hub import HfApi, snapshot_download
    from tqdm.auto import tqdm

    class Bar(tqdm[Any]):
        """A bar where stderr is a terminal; the library's count of files would be drawn anywhere."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **({"disable": None} | options))

    def fetch(at: str | None, patterns: Sequence[str]) -> Path:
        return Path(
            snapshot_download(
                repository, revision=at, allow_patterns=list(patterns), ignore_patterns=list(_NEVER),
                library_name="int8conv", library_version=__version__, tqdm_class=Bar,
            )
        )  # fmt: skip

    with _warnings_for_terminals_only(), _errors_of(source):
        folder = _patiently(lambda: fetch(revision, _SMALL_FILES))
        weights = _weight_files(folder)
        if all((folder / name).is_file() for name in (CONFIG_FILE, *weights)):
            return folder  # with no look at the hub: it may be out of reach
        files = _patiently(lambda: HfApi().list_repo_files(repository, revision=folder.name))
        _check_complete(source, files, weights)
        return _patiently(lambda: fetch(folder.name, [glob.escape(name) for name in weights]))


def _weight_files(folder: Path) -> list[str]:
    """Names of the shards; none if the index is broken, which is for ``open_checkpoint`` to say."""
    if not (folder / INDEX_FILE).is_file():
        return [SINGLE_FILE]
    try:
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    except Int8convError:
        return []
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    usable = all(isinstance(name, str) and is_plain_file_name(name) for name in names)
    return sorted(names) if usable else []


def _check_complete(source: str, files: Sequence[str], weights: Sequence[str]) -> None:
    """Refuse a repository that lacks a needed file before gigabytes of the others are downloaded."""
    if INDEX_FILE not in files and SINGLE_FILE not in files:
        kinds = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".onnx", ".h5", ".msgpack")
        others = [name for name in files if name.endswith(kinds)]
        raise NotFoundError(
            "no safetensors checkpoint in this repository", file=source,
            expected=f"{SINGLE_FILE} or {INDEX_FILE}",
            found=", ".join(others[:3]) + (", ..." if len(others) > 3 else "") or "no weights",
        )  # fmt: skip
    for name in (CONFIG_FILE, *weights):
        if name not in files:
            raise HubNotFoundError("the repository lacks a file", file=source, expected=name)


def _patiently(request: Callable[[], _Result]) -> _Result:
    """The result, after further attempts if what fails may pass."""
    for wait in _WAITS:
        try:
            return request()
        except Exception as error:
            cause = _cause(error)
            if not (_status(cause) in _PASSING_STATUS or type(cause).__name__ in _PASSING_FAULTS):
                raise
            time.sleep(max(wait, min(_asked_wait(cause), _LONGEST_WAIT)))
    return request()


def _cause(error: Exception) -> BaseException:
    """What went wrong behind "not in the cache, and could not be downloaded"."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return (isinstance(error, LocalEntryNotFoundError) and error.__cause__) or error


def _status(error: BaseException) -> int | None:
    """HTTP status of an answer that is behind an error."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _asked_wait(error: BaseException) -> int:
    """Seconds that the hub asked to wait for, or 0."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    seconds = str(headers.get("Retry-After", "")).strip()
    reset = re.search(r"\bt=(\d+)", str(headers.get("RateLimit", "")))
    return int(seconds) if seconds.isdecimal() else int(reset[1]) if reset else 0


@contextmanager
def _errors_of(source: str) -> Iterator[None]:
    try:
        yield
    except Int8convError:
        raise
    except Exception as error:  # the library's, its HTTP client's, its storage's: no common base
        raise _translated(_cause(error), source) from error


def _translated(error: BaseException, source: str) -> Int8convError:
    from huggingface_hub import errors as hub

    status = _status(error)
    if isinstance(error, hub.OfflineModeIsEnabled):
        return HubUnavailableError(
            "no such folder, nor is it complete in the hub's cache, and HF_HUB_OFFLINE is set",
            file=source,
        )
    if isinstance(error, hub.GatedRepoError):
        return HubAccessError(
            "access to this repository is gated", file=source,
            hint="accept its licence on its page, then set HF_TOKEN to a token of that account",
        )  # fmt: skip
    if status in (401, 403):
        return HubAccessError(
            "the hub gives no access to such a repository", file=source, found=f"HTTP {status}",
            hint="check the name, and set HF_TOKEN to a token that may read it",
        )  # fmt: skip
    if isinstance(error, hub.RevisionNotFoundError):
        return HubNotFoundError("no such revision in this repository on the hub", file=source)
    if isinstance(error, hub.RepositoryNotFoundError):
        return HubNotFoundError("no such folder, and no such repository on the hub", file=source)
    if status == 404:
        return HubNotFoundError("a file is not on the hub", file=source, found=_address(error))
    if status == 429:
        return HubUnavailableError(
            "the hub refuses so many requests", file=source, found=f"HTTP {status}",
            hint="try again later; with a token in HF_TOKEN it may allow more",
        )  # fmt: skip
    if status is not None:
        return HubUnavailableError("the hub fails", file=source, found=f"HTTP {status}",
                                   hint="try again later")  # fmt: skip
    if isinstance(error, OSError) and error.errno and error.filename:  # the cache's disk
        kind = NoSpaceError if error.errno == errno.ENOSPC else NotWritableError
        return kind(f"cannot download to the hub's cache: {error.strerror}", file=error.filename)
    return HubUnavailableError(
        "no such folder, and downloading from the hub failed", file=source,
        found=str(error).strip().partition("\n")[0] or type(error).__name__,
        hint="check the network, and HF_ENDPOINT if it is set",
    )  # fmt: skip


def _address(error: BaseException) -> object:
    return getattr(getattr(error, "response", None), "url", None)


@contextmanager
def _warnings_for_terminals_only() -> Iterator[None]:
    """The library tells of its retries on stderr; like its bars, that is for somebody who waits at a terminal."""
    logger = logging.getLogger("huggingface_hub")
    if sys.stderr.isatty() or os.environ.get("HF_HUB_VERBOSITY"):
        yield
        return
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
