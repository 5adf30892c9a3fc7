"""Find each input's channel magnitudes by running a text through the source, one block in memory at a time.

The blocks are the runtime's decoder in float32 on the source's own weights, so the measurements are of what the source
computes; an observer at each group of linears accumulates statistics per channel (see ``formats/int8/stats.py``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...errors import ArgumentError, CalibrationError
from ...formats.hub.download import resolve
from ...formats.int8.stats import LARGE, STATISTICS, InputStats, Stats, add_exactly, write_stats
from ...formats.outputs import check_file
from ...formats.source.checkpoint import Checkpoint
from ...progress import Progress, silent
from ...runtime.devices import DeviceLike, find_torch_device
from ...runtime.models.architecture import Architecture, Module
from ...runtime.opening import open_unconverted
from ...runtime.weights.streaming import BlockStream
from ..watch import SourceWatch
from .collect import fingerprint
from .source_weights import SourceWeights
from .texts import calibration_windows


def calibrate(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    texts: Sequence[str | os.PathLike[str]] = (),
    tokens: int | None = None,
    context: int | None = None,
    seed: int = 0,
    device: DeviceLike = "cpu",
    progress: Progress = silent,
) -> Stats:
    """Run text through a checkpoint in its own precision and record activation statistics for ``convert_checkpoint(stats=...)``.

    One block of the model is in memory at a time, in float32.

    Args:
        source: as in ``convert_checkpoint``, from a family that the runtime knows.
        out: the statistics file to write; None: write none.
        texts: UTF-8 text files; empty: a built-in text (random tokens if the source has no usable tokenizer).
        tokens: largest number of tokens from all texts, sampled as whole windows; None: all.
        context: tokens per window; None: 256, or fewer if the model has fewer positions.
        seed: seed for choosing windows.
        device: device to run on: ``"cpu"`` or any PyTorch device.
        progress: called as the work proceeds.

    Raises:
        CalibrationError: a text cannot be used, or an activation is NaN or infinite (names module and channel).
        OutputError: ``out`` is another kind of file, belongs to the source, or cannot be written.
        UnsupportedModelError: the runtime does not know the family or a feature of the config.
        ArgumentError: an option is out of range, or the device is unknown.
        NotFoundError, HubError, CheckpointError, SafetensorsError: as ``convert_checkpoint``.
    """
    if out is not None:
        check_file(Path(out), STATISTICS, [Path(source)])  # before any work
    resolved = resolve(source)
    watch = SourceWatch(resolved.folder)
    opened = open_unconverted(resolved)
    stats = calibrate_opened(
        opened.checkpoint, opened.architecture, progress, texts=[Path(text) for text in texts], tokens=tokens,
        context=context, seed=seed, device=device,
    )  # fmt: skip
    stats = replace(stats, source=resolved.id, fingerprint=fingerprint(opened.checkpoint))
    watch.check_files(opened.checkpoint, strict=True)
    if out is not None:
        write_stats(stats, Path(out), [Path(source), resolved.folder])
    return stats


@torch.inference_mode()
def calibrate_opened(
    checkpoint: Checkpoint,
    architecture: Architecture,
    progress: Progress,
    *,
    texts: Sequence[Path] = (),
    tokens: int | None = None,
    context: int | None = None,
    seed: int = 0,
    device: DeviceLike = "cpu",
) -> Stats:
    """Measure a source checkpoint, leaving out its name and fingerprint; the options are those of ``calibrate``."""
    if tokens is not None and tokens < 1:
        raise ArgumentError("tokens", expected="1 or more", found=tokens)
    place = find_torch_device(device)
    windows, used = calibration_windows(checkpoint, architecture, texts, tokens, context, seed)
    weights = SourceWeights(checkpoint, place, errors=True)
    sums: dict[str, Sums] = {}

    def observe(module: Module, x: Tensor) -> None:
        path = module.path
        if path not in sums:
            sums[path] = Sums(x.shape[-1], x.device)
        channel = sums[path].add(x.flatten(0, -2))
        if channel is not None:
            raise non_finite_activation(checkpoint, path, channel)

    layers = architecture.config.num_layers
    stream = BlockStream(architecture, weights, windows, place)
    for layer in range(layers):
        progress("calibrate", layer, layers)
        stream.advance(layer, observe)
    progress("calibrate", layers, layers)
    groups = {group[0].path: group for group in architecture.groups()}
    return Stats(
        source="",
        fingerprint="",
        texts=used,
        context=len(windows[0]),
        linears={path: tuple(m.path for m in groups[path]) for path in sums},
        normalised=tuple(path for path in sums if _is_normalised(architecture, groups[path][0])),
        inputs={path: s.finish(weights.error(path)) for path, s in sums.items()},
    )


def non_finite_activation(checkpoint: Checkpoint, path: str, channel: int) -> CalibrationError:
    """The error for a NaN or infinity in the input of the linear ``path``."""
    return CalibrationError(
        f"activation is NaN or infinite in channel {channel}", file=checkpoint.folder,
        tensor=f"{path}.weight",
        hint="the source overflows; --outliers none converts without running it",
    )  # fmt: skip


_AFTER_NORM: Final = {"q", "qkv", "gate", "up", "gate_up", "shared_gate", "shared_up"}
"""Roles of linears whose input comes from the preceding norm, if there is one."""


def _is_normalised(architecture: Architecture, first: Module) -> bool:
    role = first.role.rpartition(".")[2]  # an expert's role starts with its number
    return role in _AFTER_NORM and architecture.config.norms in ("before", "around")


class Sums:
    """Running sums for one input."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self._absmax = torch.zeros(channels, device=device)
        self._large = torch.zeros(channels, dtype=torch.int64, device=device)
        self._squares = np.zeros((2, channels))
        self._fourths = np.zeros((2, channels))

    def add(self, x: Tensor) -> int | None:
        """Add a window ``[tokens, in]``; returns the number of a channel that is not finite, if there is one.

        A window's sums are float32, and are added without rounding: statistics of two halves of a text add up to those of the
        whole text, bit for bit.
        """
        magnitude = x.abs()
        largest = magnitude.amax(dim=0)
        if not bool(largest.isfinite().all()):
            return int((~largest.isfinite()).nonzero()[0])
        self._absmax = torch.maximum(self._absmax, largest)
        reaching = (largest >= LARGE).nonzero()[:, 0]
        self._large[reaching] += (magnitude[:, reaching] >= LARGE).sum(dim=0)
        squares = magnitude.square_()
        self._squares = _added(self._squares, squares.sum(dim=0))
        self._fourths = _added(self._fourths, squares.square_().sum(dim=0))
        return None

    def finish(self, weight_error: Tensor) -> InputStats:
        return InputStats(
            self._absmax.cpu().numpy(), self._large.cpu().numpy(), self._squares, self._fourths,
            weight_error.numpy(),
        )  # fmt: skip


def _added(sums: npt.NDArray[np.float64], window: Tensor) -> npt.NDArray[np.float64]:
    rounded = window.clamp_max(_FLOAT32_MAX).double().cpu().numpy()
    return add_exactly(sums, np.stack([rounded, np.zeros_like(rounded)]))


_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
