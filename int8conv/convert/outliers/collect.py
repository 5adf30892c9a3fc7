"""Activation statistics: bound to a checkpoint, merged, and evaluated as in the LLM.int8() paper."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ...errors import ArgumentError, StatsError
from ...formats.int8.stats import InputStats, Stats, add_exactly, read_stats, write_stats
from ...formats.json_file import dump_json
from ...formats.safetensors.checksum import running_checksum
from ...formats.source.checkpoint import Checkpoint

LAYER_FRACTION: Final = 0.25
POSITION_FRACTION: Final = 0.06
"""For the paper's systematic dimensions (arXiv:2208.07339, section 4.1)."""

_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 1 << 14


def fingerprint(checkpoint: Checkpoint) -> str:
    """A fingerprint of a checkpoint's weights, independent of sharding: names, dtypes, shapes and sampled bytes.

    The sample is 16 KiB from the middle of each of 64 tensors: another training step changes all of them.
    """
    tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: tensor.name)
    running = running_checksum()
    running.update(dump_json([[t.name, t.dtype, t.shape] for t in tensors]))
    large = [t for t in tensors if len(t.shape) > 1] or tensors
    for tensor in large[:: max(1, len(large) // _SAMPLES)][:_SAMPLES]:
        data = bytearray(min(tensor.nbytes, _SAMPLE_BYTES))
        start = tensor.offset + (tensor.nbytes - len(data)) // 2
        with tensor.file.open(start + len(data)) as reader:
            reader.read_into(memoryview(data), start)
        running.update(data)
    return running.hexdigest()


def check_source(
    stats: Stats, checkpoint: Checkpoint, inputs: Mapping[str, int], file: object
) -> None:
    """Raise StatsError if statistics belong to another checkpoint, or do not match its inputs and their widths."""
    found = fingerprint(checkpoint)
    if found != stats.fingerprint:
        raise StatsError(
            f"the statistics belong to another checkpoint ('{stats.source}')", file=file,
            expected=f"fingerprint {found}", found=stats.fingerprint,
            hint="calibrate this checkpoint",
        )  # fmt: skip
    for path, in_features in inputs.items():
        found_channels = len(stats.inputs[path].absmax) if path in stats.inputs else None
        if found_channels != in_features:
            raise StatsError("wrong number of channels", file=file,
                             tensor=f"{path}.absmax", expected=in_features, found=found_channels)  # fmt: skip


def merge(parts: Sequence[tuple[str, Stats]]) -> Stats:
    """Merge statistics of several texts, as if they had been measured in one run.

    Args:
        parts: file name (for errors) and contents of each.

    Raises:
        ArgumentError: fewer than two files.
        StatsError: they are of different checkpoints, windows or inputs.
    """
    if len(parts) < 2:
        raise ArgumentError("merge", expected="two statistics files or more", found=len(parts))
    name, first = parts[0]
    merged = first
    for file, stats in parts[1:]:
        for what in ("fingerprint", "context", "linears", "normalised"):
            expected, found = getattr(first, what), getattr(stats, what)
            if expected != found:
                raise StatsError(f"{what} differs from {name}", file=file,
                                 expected=expected, found=found)  # fmt: skip
        inputs = {}
        for path, a in merged.inputs.items():
            b = stats.inputs[path]
            if a.absmax.shape != b.absmax.shape or not np.array_equal(
                a.weight_error, b.weight_error
            ):
                raise StatsError(f"differs from {name}", file=file, tensor=f"{path}.weight_error")
            inputs[path] = InputStats(
                np.maximum(a.absmax, b.absmax), a.large + b.large, add_exactly(a.squares, b.squares),
                add_exactly(a.fourths, b.fourths), a.weight_error,
            )  # fmt: skip
        merged = replace(merged, inputs=inputs, texts=merged.texts + stats.texts)
    return merged


def merge_files(files: Sequence[str], out: str | os.PathLike[str]) -> Stats:
    """Merge statistics files into one.

    Raises:
        NotFoundError, SafetensorsError, StatsError, ArgumentError: a file cannot be read, or they do not belong together.
        OutputError: ``out`` is another kind of file, or cannot be written.
    """
    stats = merge([(file, read_stats(file)) for file in files])
    write_stats(stats, Path(out), map(Path, files))
    return stats


def systematic_dimensions(stats: Stats) -> npt.NDArray[np.int64]:
    """The paper's outlier dimensions of the hidden state.

    Dimensions with a magnitude of at least 6.0 in at least 25 % of the layers and 6 % of the positions, counted over the inputs
    that come directly from a norm: attention and the first FFN matrix.
    """
    widths = Counter(len(stats.inputs[path].absmax) for path in stats.normalised)
    if not widths:
        return np.empty(0, np.int64)
    hidden = widths.most_common(1)[0][0]  # a model may also have norms of other widths
    found = (stats.inputs[path] for path in stats.normalised)
    inputs = [each for each in found if len(each.absmax) == hidden]
    hit = np.stack([found.large > 0 for found in inputs])
    fraction = np.stack([found.large for found in inputs]) / stats.tokens
    layers = np.count_nonzero(hit, axis=0) >= LAYER_FRACTION * len(inputs)
    # fraction of positions in the layers where the dimension is an outlier at all
    positions = np.where(hit, fraction, 0).sum(axis=0) / np.maximum(hit.sum(axis=0), 1)
    return np.flatnonzero(layers & (positions >= POSITION_FRACTION))
