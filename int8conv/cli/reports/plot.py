"""``inspect --plot``: a map of outliers (layers by channels), and the error of each layer's int8 weights."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...convert.outliers.figures import binned, expected_errors, outlier_map
from ...errors import ArgumentError, StatsError, printable
from ...formats.int8.folder import ConvertedFolder
from ...formats.int8.manifest import InputGroup
from ...formats.int8.stats import Stats, input_stats
from ...formats.int8.summary import layer_of
from ...formats.outputs import OutputKind, check_file, write_output
from ...formats.safetensors.stored import read_array

KINDS: Final = {
    ".png": OutputKind("a PNG picture", lambda path: _starts(path, (b"\x89PNG\r\n\x1a\n",))),
    ".svg": OutputKind("an SVG picture", lambda path: _starts(path, (b"<?xml", b"<svg"))),
}
"""By file suffix."""


def check_plot(file: Path) -> Any:  # matplotlib may not be installed
    """Check that ``file`` can be plotted to, before any work; returns matplotlib's pyplot.

    Raises:
        ArgumentError: unsupported suffix, or matplotlib is not installed.
        OutputExistsError: the file exists and is not a picture of that kind.
    """
    if file.suffix not in KINDS:
        raise ArgumentError("plot", expected=" or ".join(KINDS), found=file.name)
    check_file(file, KINDS[file.suffix])
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ArgumentError("plot needs matplotlib", hint="pip install 'int8conv[plot]'") from error


def plot(
    converted: ConvertedFolder,
    file: Path,
    *,
    stats: Stats | None = None,
    errors: Mapping[str, float] | None = None,
) -> None:
    """Draw a converted folder.

    Args:
        converted: the folder.
        file: ``.png`` or ``.svg``.
        stats: statistics of its source, to map every channel's largest activation. None: map only the kept columns, by
            their largest weight.
        errors: measured relative RMS error of each linear's weight, by path; None: estimated from codes and scales.

    Raises:
        StatsError: the statistics belong to another checkpoint.
        OutputError: the file exists and is something else, or cannot be written.
    """
    pyplot = check_plot(file)
    if stats is not None:
        check_stats(converted, stats)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from matplotlib, about glyphs missing from its fonts
        _plot(pyplot, converted, file, stats, errors)


def check_stats(converted: ConvertedFolder, stats: Stats) -> None:
    """Raise StatsError if an input of the folder is missing from the statistics or has another width there."""
    for group in converted.manifest.inputs:
        found = input_stats(stats, group.linears[0])
        channels = None if found is None else len(found.absmax)
        if channels != group.in_features:
            raise StatsError(
                f"the statistics belong to another checkpoint ('{stats.source}')", file=converted.checkpoint.folder,
                tensor=group.linears[0], expected=f"{group.in_features} channels", found=channels or "none",
                hint="calibrate the source of this folder",
            )  # fmt: skip


def _label(text: object) -> str:
    """A name for matplotlib: without control characters, not parsed as a formula."""
    return printable(str(text))[:200].replace("$", r"\$")


def _plot(
    pyplot: Any, converted: ConvertedFolder, file: Path, stats: Stats | None,
    errors: Mapping[str, float] | None,
) -> None:  # fmt: skip
    roles = _by_role(converted.manifest.inputs)
    found = errors if errors is not None else expected_errors(converted)
    figure, panels = pyplot.subplots(
        len(roles) + 1, 1, figsize=(11, 2.1 * (len(roles) + 1) + 1.2), layout="constrained"
    )
    for panel, (role, groups) in zip(panels, roles.items(), strict=False):
        _draw_map(panel, role, groups, converted, stats)
    _draw_errors(panels[-1], roles, found, "measured" if errors is not None else "expected")
    source = _label(converted.manifest.source.get("id"))
    figure.suptitle(f"{source}: outlier channels of each input, and error of int8 weights")
    picture = io.BytesIO()
    try:
        figure.savefig(
            picture, format=file.suffix[1:], dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None
        )  # fmt: skip
    finally:
        pyplot.close(figure)
    write_output(file, picture.getvalue(), KINDS[file.suffix])


def _starts(path: Path, words: tuple[bytes, ...]) -> bool:
    with path.open("rb") as file:
        return file.read(16).startswith(words)


def _by_role(inputs: Sequence[InputGroup]) -> dict[str, list[InputGroup]]:
    """Inputs of all layers, grouped by the names of their linears."""
    roles: dict[str, list[InputGroup]] = {}
    for group in inputs:
        if layer_of(group.linears[0]) is not None:
            names = (path.rpartition(".")[2] for path in group.linears[:4])
            roles.setdefault(", ".join(names), []).append(group)
    return roles


def _draw_map(
    panel: Any, role: str, groups: list[InputGroup], converted: ConvertedFolder, stats: Stats | None
) -> None:
    channels = max(group.in_features for group in groups)
    values = binned(outlier_map(groups, converted, stats))
    values[values <= 0] = np.nan
    some = bool(np.isfinite(values).any())
    image = panel.imshow(
        values, aspect="auto", interpolation="nearest", cmap="viridis",
        norm="log" if some else None, extent=(-0.5, channels - 0.5, len(groups) - 0.5, -0.5),
    )  # fmt: skip
    for row, group in enumerate(groups):
        index = converted.linears[group.linears[0]].outlier_index
        if index is not None and stats is not None:
            columns = read_array(index)
            panel.plot(columns, np.full(len(columns), row + 0.38), "|", color="red", ms=4, mew=1)
    what = "largest |activation|" if stats is not None else "largest |weight|"
    if some:
        panel.figure.colorbar(image, ax=panel, label=what, pad=0.01)
    kept = sum(group.outliers for group in groups)
    marked = ", red: kept in 16 bits" if stats is not None else ""
    panel.set_title(
        f"input of {_label(role)} ({kept} of {channels * len(groups)} columns kept{marked})",
        fontsize=9,
    )
    panel.set_xlabel("channel", fontsize=8)
    panel.set_ylabel("layer", fontsize=8)
    step = -(-len(groups) // 12)
    panel.set_yticks(range(0, len(groups), step))
    panel.set_yticklabels([layer_of(group.linears[0]) for group in groups[::step]])


def _draw_errors(
    panel: Any, roles: dict[str, list[InputGroup]], errors: Mapping[str, float], how: str
) -> None:
    names: dict[str, list[tuple[int, float]]] = {}
    for groups in roles.values():
        for path in (path for group in groups for path in group.linears if path in errors):
            layer = layer_of(path)
            assert layer is not None
            names.setdefault(path.rpartition(".")[2], []).append((layer, 100 * errors[path]))
    for number, (name, points) in enumerate(names.items()):
        panel.plot(
            *zip(*points, strict=True),
            marker="osD^vXP"[number % 7],
            ms=4,
            lw=1,
            label=_label(name).lstrip("_"),
        )
    panel.set_title(f"relative RMS error of int8 weights, {how}", fontsize=9)
    panel.set_xlabel("layer", fontsize=8)
    panel.set_ylabel("error, %", fontsize=8)
    panel.set_ylim(bottom=0)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.legend(fontsize=7, ncols=4, loc="lower left")
