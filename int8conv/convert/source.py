"""A checkpoint that can be converted: opened, known, and not quantised already."""

from __future__ import annotations

from pathlib import Path

from ..formats.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from ..formats.source_checks import check_not_quantized
from ..runtime.architecture import Architecture, read_architecture


def open_source(folder: Path) -> tuple[Checkpoint, Architecture]:
    """Open a checkpoint folder of a known family.

    Raises:
        NotFoundError, CheckpointError, SafetensorsError: it is absent, malformed, or quantised already.
        UnsupportedModelError: a family, or a feature of it, that is not known.
    """
    checkpoint = open_checkpoint(folder)
    check_not_quantized(checkpoint)
    config_file = folder / CONFIG_FILE
    return checkpoint, read_architecture(checkpoint.config, checkpoint.tensors, config_file)
