"""The outlier columns of every input of a conversion: from the journal if it has them, otherwise chosen in one of three ways."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ...formats.int8.names import OUTLIER_MULTIPLE
from ...formats.int8.stats import Stats
from ...progress import Progress
from ..journal import Journal
from ..options import ConvertOptions
from ..source import OpenedSource
from ..watch import SourceWatch
from .data_free import RULE as DATA_FREE_RULE
from .data_free import choose_data_free
from .norm_gains import norm_offset
from .rule import OutlierChoice, choose_all
from .selection import Group, Selection

Choices = tuple[dict[str, OutlierChoice], dict[str, Any] | None, tuple[str, ...]]
"""Choices by input, the manifest's ``calibration``, and notes for the user."""

RANDOM: Final = (
    "the source has no usable tokenizer: calibrated on random tokens, which may miss outlier columns of real text; "
    "put its tokenizer files beside the weights"
)
"""A note for the user."""
_KEY: Final = "outliers"


def choose(
    opened: OpenedSource,
    options: ConvertOptions,
    stats: Stats | None,
    journal: Journal,
    watch: SourceWatch,
    progress: Progress,
) -> Choices:
    """The outlier columns of each input, how they were found, and notes for the user.

    Raises:
        CalibrationError: the model cannot be run.
        FileChangedError: the source was changed in the meantime.
    """
    if options.outliers == "none":
        return {}, None, ()
    recorded = _recorded(journal.entries.get(_KEY), opened.selection)
    if recorded is not None:
        return recorded
    choices, about, notes = _found(opened, options, stats, progress)
    watch.check_files(
        opened.checkpoint, strict=True
    )  # before the choice is recorded for this source
    entry = {
        "choices": {path: choice.to_json() for path, choice in choices.items()},
        "calibration": about,
        "notes": list(notes),
    }
    journal.record(_KEY, entry)
    return choices, about, notes


def _found(
    opened: OpenedSource, options: ConvertOptions, stats: Stats | None, progress: Progress
) -> Choices:
    if options.outliers == "data-free" or opened.architecture is None:
        found = choose_data_free(
            opened.checkpoint, opened.selection, options.max_outliers,
            offset=norm_offset(opened.checkpoint.config, opened.architecture),
        )  # fmt: skip
        return found, {"rule": DATA_FREE_RULE}, ()
    if stats is None:
        from .calibrate import calibrate_opened  # needs torch

        stats = calibrate_opened(
            opened.checkpoint, opened.architecture, progress, tokens=options.calibration_tokens
        )
    about = {
        "texts": [text for text, _ in stats.texts], "tokens": stats.tokens,
        "context": stats.context, "rule": options.choosing.describe(),
    }  # fmt: skip
    notes = [RANDOM] * stats.random
    return choose_all(stats, options.choosing), about, tuple(notes)


def _recorded(entry: Any, selection: Selection) -> Choices | None:
    """A journal's entry, if it is a valid record of ``choose`` for these inputs."""
    try:
        choices = {path: OutlierChoice.from_json(v) for path, v in entry["choices"].items()}
        about, notes = entry["calibration"], tuple(entry["notes"])
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return None
    if not isinstance(about, dict) or not all(isinstance(note, str) for note in notes):
        return None
    widths = {
        item.input: item.linears[0].weight.shape[1]
        for item in selection.items
        if isinstance(item, Group)
    }
    fits = all(_fits(choice, widths.get(path)) for path, choice in choices.items())
    return (choices, about, notes) if fits else None


def _fits(choice: OutlierChoice, in_features: int | None) -> bool:
    """Whether a choice is valid; for an input that is not quantized after all, the columns do not matter."""
    columns, threshold = choice.columns, choice.threshold
    if columns.ndim != 1 or len(columns) % OUTLIER_MULTIPLE or (np.diff(columns) <= 0).any():
        return False
    if threshold is not None and not (isinstance(threshold, float) and 0 <= threshold < np.inf):
        return False
    outside = in_features is not None and len(columns) and columns[-1] >= in_features
    return not outside and not (len(columns) and columns[0] < 0)
