"""Upload a converted folder to the hub: verified before, described by a model card, visible when it is complete."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArgumentError
from ..formats.hub.upload import CARD, Repository
from ..formats.int8.folder import ConvertedFolder, open_converted
from ..formats.int8.names import MANIFEST_FILE
from ..formats.int8.verify import verify
from ..progress import Progress, silent
from .card import model_card, read_evaluation


@dataclass(frozen=True)
class PushReport:
    """What was uploaded, or would be."""

    repository: str
    files: dict[str, int]
    """Names and sizes in bytes, without the model card."""
    card: str
    """The text of the repository's README.md."""
    removed: tuple[str, ...] = ()
    """Files of an earlier conversion that the commit removed."""
    commit: str | None = None
    """Address of the commit; None after a dry run."""

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())


def push(
    folder: str | os.PathLike[str], repository: str, *, private: bool = False, evaluation: str | os.PathLike[str] | None = None,
    force: bool = False, dry_run: bool = False, progress: Progress = silent,
) -> PushReport:  # fmt: skip
    """Upload a converted folder to a model repository on the hub.

    Every byte is verified first. The files that the manifest names are uploaded, with a model card as README.md, in one commit: after an
    interruption nothing looks complete, and the next call sends only what is missing.

    Args:
        folder: the converted folder.
        repository: ``org/name``, which is created unless it exists.
        private: create it as a private one.
        evaluation: a file with what ``int8conv eval --json --against`` printed, for the model card.
        force: replace another conversion in the repository.
        dry_run: verify and describe, but ask nothing of the hub.
        progress: called with stage, bytes done and bytes in total.

    Raises:
        NotConvertedError, ConvertedFormatError, ChecksumError: the folder is not a valid converted one.
        ArgumentError: a name or the evaluation cannot be used.
        HubExistsError: the repository has other content.
        HubAccessError: there is no token, or it does not allow writing there.
        HubUnavailableError: the hub cannot be reached.
    """
    place = Repository(repository)
    figures = None if evaluation is None else read_evaluation(Path(evaluation))
    converted = open_converted(Path(folder))
    sizes = _files(converted)
    card = model_card(repository, converted, figures)
    if not dry_run:
        there = place.check(converted.folder / MANIFEST_FILE, force=force)
    verify(converted, progress=progress)
    if dry_run:
        return PushReport(repository, sizes, card)
    place.create(private=private)
    removed = sorted(there - {*sizes, CARD} & _weights(there))
    message = f"Upload a model converted by {converted.manifest.generator}"
    commit = place.upload(
        converted.folder, sizes, card, remove=removed, message=message, progress=progress
    )
    return PushReport(repository, sizes, card, tuple(removed), commit)


def _files(converted: ConvertedFolder) -> dict[str, int]:
    """Names and sizes of what belongs to the folder; the manifest last."""
    sizes = {name: record.bytes for name, record in converted.manifest.files.items()}
    if CARD in sizes:
        raise ArgumentError("the folder has a README.md of its own", file=converted.folder)
    return sizes | {MANIFEST_FILE: (converted.folder / MANIFEST_FILE).stat().st_size}


def _weights(names: frozenset[str]) -> set[str]:
    """Those names that a reader could take for weights of the model."""
    return {name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))}
