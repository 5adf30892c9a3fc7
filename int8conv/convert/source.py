"""A checkpoint that can be converted: opened, known, and not quantised already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..formats.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from ..formats.source_checks import check_not_quantized
from ..formats.storage import WeightsFile
from ..runtime.architecture import Architecture, read_architecture


def open_source(
    folder: Path, remote: Mapping[str, WeightsFile] | None = None
) -> tuple[Checkpoint, Architecture]:
    """Open a checkpoint folder of a known family, with the weights files of ``remote``.

    Raises:
        NotFoundError, CheckpointError, SafetensorsError: it is absent, malformed, or quantised already.
        UnsupportedModelError: a family, or a feature of it, that is not known.
    """
    checkpoint = open_checkpoint(folder, remote)
    check_not_quantized(checkpoint)
    config_file = folder / CONFIG_FILE
    return checkpoint, read_architecture(checkpoint.config, checkpoint.tensors, config_file)
