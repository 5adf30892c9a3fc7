"""Statistics of activations: bound to a checkpoint, merged, and summed up as the paper does."""

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

LAYER_SHARE: Final = 0.25
POSITION_SHARE: Final = 0.06
"""Of the paper's systematic dimensions (arXiv:2208.07339, section 4.1)."""

_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 1 << 14


def fingerprint(checkpoint: Checkpoint) -> str:
    """What a checkpoint's weights are, however they are sharded: names, dtypes, shapes, and the bytes of a sample.

    The sample is 16 KiB from the middle of 64 tensors: another training step changes all of them.
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
    """Raise StatsError if statistics are of another checkpoint, or not of its inputs and their widths."""
    found = fingerprint(checkpoint)
    if found != stats.fingerprint:
        raise StatsError(
            f"statistics of another checkpoint ('{stats.source}')", file=file,
            expected=f"fingerprint {found}", found=stats.fingerprint,
            hint="calibrate this checkpoint",
        )  # fmt: skip
    for path, in_features in inputs.items():
        found_channels = len(stats.inputs[path].absmax) if path in stats.inputs else None
        if found_channels != in_features:
            raise StatsError("wrong number of channels", file=file,
                             tensor=f"{path}.absmax", expected=in_features, found=found_channels)  # fmt: skip


def merge(parts: Sequence[tuple[str, Stats]]) -> Stats:
    """Statistics of several texts as if they had been measured in one go.

    Args:
        parts: the file's name, for errors, and what it holds.

    Raises:
        ArgumentError: fewer than two.
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
                raise StatsError(f"{what} differs from that of {name}", file=file,
                                 expected=expected, found=found)  # fmt: skip
        inputs = {}
        for path, a in merged.inputs.items():
            b = stats.inputs[path]
            if a.absmax.shape != b.absmax.shape or not np.array_equal(
                a.weight_error, b.weight_error
            ):
                raise StatsError(
                    f"another weight than in {name}", file=file, tensor=f"{path}.weight_error"
                )
            inputs[path] = InputStats(
                np.maximum(a.absmax, b.absmax), a.large + b.large, add_exactly(a.squares, b.squares),
                add_exactly(a.fourths, b.fourths), a.weight_error,
            )  # fmt: skip
        merged = replace(merged, inputs=inputs, texts=merged.texts + stats.texts)
    return merged


def merge_files(files: Sequence[str], out: str | os.PathLike[str]) -> Stats:
    """Merge statistics files into one.

    Raises:
        NotFoundError, SafetensorsError, StatsError, ArgumentError: they cannot be read, or do not belong together.
        OutputError: ``out`` is of another kind, or cannot be written.
    """
    stats = merge([(file, read_stats(file)) for file in files])
    write_stats(stats, Path(out), map(Path, files))
    return stats


def systematic_dimensions(stats: Stats) -> npt.NDArray[np.int64]:
    """The paper's outlier dimensions of the hidden state.

    Those with a magnitude of at least 6.0 in at least 25 % of the layers and 6 % of the positions, over the inputs that
    come straight from a norm: of attention and of the FFN's first matrix.
    """
    widths = Counter(len(stats.inputs[path].absmax) for path in stats.normalised)
    if not widths:
        return np.empty(0, np.int64)
    hidden = widths.most_common(1)[0][0]  # a model may have norms of other widths too
    found = (stats.inputs[path] for path in stats.normalised)
    inputs = [each for each in found if len(each.absmax) == hidden]
    hit = np.stack([found.large > 0 for found in inputs])
    share = np.stack([found.large for found in inputs]) / stats.tokens
    layers = np.count_nonzero(hit, axis=0) >= LAYER_SHARE * len(inputs)
    # of the positions, where the dimension stands out at all
    positions = np.where(hit, share, 0).sum(axis=0) / np.maximum(hit.sum(axis=0), 1)
    return np.flatnonzero(layers & (positions >= POSITION_SHARE))
