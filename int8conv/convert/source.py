"""A checkpoint that can be converted: opened, not already quantized, known to the runtime or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ..errors import ArgumentError, MissingTensorError, UnsupportedModelError
from ..formats.hub.download import Source
from ..formats.source.adapter import is_adapter_name
from ..formats.source.checkpoint import CONFIG_FILE, Checkpoint
from ..formats.source.matrix import have_same_values
from ..formats.source.metadata_files import find_metadata_files
from ..runtime.models.architecture import Architecture, find_tensor, read_architecture
from ..runtime.opening import open_unconverted
from .by_name.generic import select_by_names
from .options import ConvertOptions
from .outliers.selection import Selection, matches, select_modules

ADAPTER_CONFIG: Final = "adapter_config.json"


@dataclass(frozen=True)
class OpenedSource:
    """A source and what its tensors will become."""

    checkpoint: Checkpoint
    architecture: Architecture | None
    """None if the runtime does not know the model: names and shapes decide."""
    selection: Selection
    notes: tuple[str, ...]
    """Notes for the user."""


def open_source(
    source: Source, options: ConvertOptions, *, headers_only: bool = False
) -> OpenedSource:
    """Open a checkpoint and select what becomes int8.

    Args:
        source: the checkpoint.
        options: among others, patterns for names.
        headers_only: read no weights; a head next to a tied embedding is then assumed to be its copy.

    Raises:
        NotFoundError, CheckpointError, SafetensorsError: it is absent, malformed or already quantized.
        UnsupportedModelError: the runtime does not know it, and nothing looks like a linear.
        ArgumentError: a pattern of the options matches nothing.
    """
    opened = open_unconverted(source)
    checkpoint, excluded = _included(opened.checkpoint, options)
    architecture = None
    notes = list(checkpoint.notes)
    notes += find_metadata_files(source.folder, checkpoint.config).notes
    try:
        architecture = _read_architecture(
            opened.checkpoint, source.folder / CONFIG_FILE, headers_only
        )
        notes += architecture.notes
    except UnsupportedModelError as error:
        notes.append(
            f"the runtime cannot run this model ({error.problem}): linears are chosen by names and shapes, "
            "outlier columns by norms and weights"
        )
    try:
        if architecture is not None:
            selection = select_modules(checkpoint, architecture, options.patterns)
        else:
            selection = select_by_names(checkpoint, options.patterns)
    except MissingTensorError as error:
        if error.tensor in excluded:
            raise ArgumentError("the model needs a tensor that is left out", tensor=error.tensor,
                                hint="change --include or --exclude") from None  # fmt: skip
        raise
    selection = replace(selection, skipped=selection.skipped | excluded)
    said = any(is_adapter_name(path.name) for path in source.folder.iterdir())
    if (source.folder / ADAPTER_CONFIG).is_file() and not said:
        notes.append(
            f"{ADAPTER_CONFIG}: the adapter next to the weights is not part of the output; merge it first"
        )
    return OpenedSource(checkpoint, architecture, selection, (*notes, *selection.notes))


def _read_architecture(checkpoint: Checkpoint, file: Path, headers_only: bool) -> Architecture:
    """The decoder; a head that is a copy of the token embedding does not count as one."""
    architecture = read_architecture(checkpoint.config, checkpoint.tensors, file)
    if not architecture.untied:
        return architecture
    modules = architecture.outside()
    head = find_tensor(checkpoint, modules["head"])
    embed = find_tensor(checkpoint, modules["embed"])
    if not headers_only and not have_same_values(embed, head):
        return architecture
    rest = [name for name in checkpoint.tensors if name != head.name]
    return read_architecture(checkpoint.config, rest, file)


def _included(checkpoint: Checkpoint, options: ConvertOptions) -> tuple[Checkpoint, dict[str, str]]:
    """The checkpoint with the tensors that the options select, and the others with the reason."""
    for option, patterns in (("include", options.include), ("exclude", options.exclude)):
        for pattern in patterns:
            if not any(matches((pattern,), name) for name in checkpoint.tensors):
                raise ArgumentError(f"{option} matches no tensor", found=repr(pattern),
                                    expected=f"such as {next(iter(checkpoint.tensors), 'none')}")  # fmt: skip
    taken, excluded = {}, {}
    for name, tensor in checkpoint.tensors.items():
        if options.include and not matches(options.include, name):
            excluded[name] = "not included"
        elif matches(options.exclude, name):
            excluded[name] = "excluded"
        else:
            taken[name] = tensor
    return replace(checkpoint, tensors=taken), excluded
