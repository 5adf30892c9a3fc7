"""Upload files to a repository on the hub: each large file by itself, then one commit that makes all of them visible.

An upload that was cut off leaves nothing that looks like a model; what the hub already holds is not sent again. The hub library is
imported only when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from ... import __version__
from ...errors import ArgumentError, HubExistsError, HubNotFoundError
from ...progress import Progress
from ..int8.names import MANIFEST_FILE
from .download import parse_id
from .failures import hub_errors, patiently, quiet_library

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

CARD: Final = "README.md"
_HARMLESS: Final = {CARD, ".gitattributes", ".gitignore"}
"""Files that a new repository may have; the card is replaced, the others stay."""


class Repository:
    """A model repository to upload to.

    Args:
        name: ``org/name``.

    Raises:
        ArgumentError: it is something else.
    """

    def __init__(self, name: str) -> None:
        parsed = parse_id(name)
        if parsed is None or parsed[1] is not None:
            raise ArgumentError("not a repository", expected="org/name", found=name)
        self.name = name

    def files(self) -> frozenset[str] | None:
        """Names of its files; None if there is no such repository, or none that this user may see.

        Raises:
            HubError: the hub cannot be reached.
        """
        try:
            with _library(self.name):
                return frozenset(patiently(lambda: _api().list_repo_files(self.name)))
        except HubNotFoundError:
            return None

    def check(self, manifest: Path, *, force: bool) -> frozenset[str]:
        """Check that an upload may go there, and return the names of its files.

        It may go to a new or empty repository, to one with the same manifest, and with ``force`` to one with another manifest.

        Raises:
            HubExistsError: the repository has other content.
            HubError: the hub cannot be reached.
        """
        there = self.files()
        if there is None or there <= _HARMLESS:
            return there or frozenset()
        if MANIFEST_FILE not in there:
            raise HubExistsError(
                "the repository holds something other than a converted model", file=self.name, found=min(there - _HARMLESS),
                hint="choose another name",
            )  # fmt: skip
        if not force and self._read(MANIFEST_FILE) != manifest.read_bytes():
            raise HubExistsError(
                "the repository holds another conversion", file=self.name, hint="--force replaces it with a new commit",
            )  # fmt: skip
        return there

    def _read(self, name: str) -> bytes:
        from huggingface_hub import hf_hub_download

        with _library(self.name):
            return Path(patiently(lambda: hf_hub_download(self.name, name))).read_bytes()

    def create(self, *, private: bool) -> None:
        """Create it unless it exists.

        Raises:
            HubAccessError: there is no token, or it does not allow writing here.
            HubError: the hub cannot be reached.
        """
        with _library(self.name, write=True):
            patiently(lambda: _api().create_repo(self.name, private=private, exist_ok=True))

    def upload(
        self, folder: Path, sizes: Mapping[str, int], card: str, *, remove: Sequence[str], message: str, progress: Progress,
    ) -> str:  # fmt: skip
        """Upload files and the card in one commit; returns the address of the commit.

        Args:
            folder: where the files are.
            sizes: their names in the folder, and sizes in bytes.
            card: text of the repository's README.md.
            remove: names of files that the commit removes.
            message: of the commit.
            progress: called with "upload", bytes done and bytes in total.

        Raises:
            HubAccessError: the token does not allow writing here.
            HubError: the hub cannot be reached.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        total, done = sum(sizes.values()), 0
        with _library(self.name, write=True):
            added = [CommitOperationAdd(CARD, card.encode())]
            for name, nbytes in sizes.items():
                file = CommitOperationAdd(PurePosixPath(name).as_posix(), str(folder / name))
                self._send(file)
                added.append(file)
                done += nbytes
                progress("upload", done, total)
            removed = [CommitOperationDelete(name, is_folder=False) for name in remove]
            commit = patiently(
                lambda: _api().create_commit(self.name, [*added, *removed], commit_message=message)
            )
        return str(commit.commit_url)

    def _send(self, file: CommitOperationAdd) -> None:
        """Send a large file's bytes unless the hub has them; a small one goes with the commit."""
        patiently(
            lambda: _api().preupload_lfs_files(self.name, [file], num_threads=1, free_memory=False)
        )


def _api() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="int8conv", library_version=__version__)


@contextmanager
def _library(repository: str, *, write: bool = False) -> Iterator[None]:
    """The library without bars and warnings of its own, its errors as this package's."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    were = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with quiet_library(), hub_errors(repository, write=write):
            yield
    finally:
        if not were:
            enable_progress_bars()
