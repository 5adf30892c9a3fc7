"""``open_model``: open and check a folder, a weights file or a hub id, converted or not, reading every header once.

Imports no torch, as the converter and the footprint use this too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..formats.hub.download import Source, resolve, resolve_headers
from ..formats.int8.folder import ConvertedFolder, is_converted, open_converted
from ..formats.source.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from ..formats.source.checks import check_plain
from ..formats.source.four_bit import unpacked
from .models.architecture import Architecture, read_architecture
from .models.expert_stacks import take_apart


@dataclass(frozen=True)
class OpenedModel:
    """A model's headers; created by ``open_model``."""

    source: Source
    """Its origin."""
    checkpoint: Checkpoint
    """The checkpoint; of a converted folder, the one with its tensors."""
    converted: ConvertedFolder | None
    """None for an unconverted checkpoint."""

    @property
    def folder(self) -> Path:
        return self.source.folder

    @property
    def config(self) -> dict[str, Any]:  # a config.json may hold anything
        return self.checkpoint.config

    @cached_property
    def architecture(self) -> Architecture:
        """The decoder described by the config, checked against the tensors.

        Raises:
            UnsupportedModelError: the runtime does not know the family or a feature of the config.
            CheckpointError: config and tensors do not match.
        """
        config_file = self.folder / CONFIG_FILE
        return read_architecture(self.config, self.checkpoint.tensors, config_file)


def open_model(path: str | os.PathLike[str], *, headers_only: bool = False) -> OpenedModel:
    """Open a converted folder or an unconverted checkpoint.

    Args:
        path: a folder, a weights file or index in one, or a hub id, ``org/name`` or ``org/name@revision``.
        headers_only: leave the weights of an unconverted model on the hub, if its format allows that.

    Raises:
        NotFoundError: there is no such folder, or nothing to open in it.
        HubError: it cannot be downloaded.
        AlreadyQuantizedError: another tool has quantized it.
        CheckpointError, SafetensorsError, ConvertedFormatError: it is malformed.
    """
    source = resolve_headers(path) if headers_only else resolve(path)
    if not is_converted(source.folder):
        return open_unconverted(source)
    if source.remote:  # checking a converted folder needs its files
        source = resolve(path)
    converted = open_converted(source.folder)
    return OpenedModel(source, converted.checkpoint, converted)


def open_unconverted(source: Source) -> OpenedModel:
    """Open a checkpoint to convert, or to run in its own precision.

    Raises:
        AlreadyQuantizedError: int8conv or another tool has quantized it.
        NotFoundError, CheckpointError, SafetensorsError: as for ``open_model``.
    """
    checkpoint = unpacked(open_checkpoint(source.folder, source.remote, source.only))
    check_plain(checkpoint)
    return OpenedModel(source, take_apart(checkpoint), None)
