"""Find each input's channel magnitudes by running a text through the source, one block in memory at a time.

The blocks are the runtime's decoder in float32 on the source's own weights, so the measurements are of what the source
computes; an observer at each group of linears accumulates statistics per channel (see ``formats/int8/stats.py``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ArgumentError, CalibrationError, TokenizerError
from ...formats.hub.download import resolve
from ...formats.int8.stats import LARGE, STATISTICS, InputStats, Stats, add_exactly, write_stats
from ...formats.outputs import check_file
from ...formats.safetensors.checksum import checksum
from ...formats.safetensors.storage import LocalFile
from ...formats.source.checkpoint import Checkpoint
from ...progress import Progress, silent
from ...runtime.devices import DeviceLike, find_torch_device
from ...runtime.measure.windows import (
    Text,
    check_context,
    disjoint_windows,
    encode,
    read_text,
    too_short,
)
from ...runtime.models.architecture import Architecture, Module, find_tensor
from ...runtime.opening import open_unconverted
from ...runtime.text.tokenizer import Tokenizer
from ...runtime.weights.mapping import TORCH_DTYPES, MappedFiles
from ...runtime.weights.streaming import BlockStream
from ...runtime.weights.weights import CheckpointWeights, Lookup
from ..stream import non_finite_weight
from ..watch import SourceWatch
from .collect import fingerprint

CONTEXT: Final = 256
RANDOM_TOKENS: Final = 1024
_ROWS_AT_ONCE: Final = 1 << 19
"""Number of weights whose int8 error is computed at once."""


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
    windows, used = _windows(checkpoint, architecture, texts, tokens, context, seed)
    weights = _CalibrationWeights(checkpoint, place)
    sums: dict[str, Sums] = {}

    def observe(module: Module, x: Tensor) -> None:
        path = module.path
        if path not in sums:
            sums[path] = Sums(x.shape[-1], x.device)
        channel = sums[path].add(x.flatten(0, -2))
        if channel is not None:
            raise CalibrationError(
                f"activation is NaN or infinite in channel {channel}", file=checkpoint.folder,
                tensor=f"{path}.weight",
                hint="the source overflows; --outliers none converts without running it",
            )  # fmt: skip

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

        A window's sums are rounded to float32 and then added without rounding: statistics of two halves of a text add up to
        those of the whole text, bit for bit.
        """
        magnitude = x.abs()
        largest = magnitude.amax(dim=0)
        if not bool(largest.isfinite().all()):
            return int((~largest.isfinite()).nonzero()[0])
        self._absmax = torch.maximum(self._absmax, largest)
        self._large += (magnitude >= LARGE).sum(dim=0)
        squares = magnitude.double().square_()
        self._squares = _added(self._squares, squares.sum(dim=0))
        self._fourths = _added(self._fourths, squares.square_().sum(dim=0))
        return None

    def finish(self, weight_error: Tensor) -> InputStats:
        return InputStats(
            self._absmax.cpu().numpy(), self._large.cpu().numpy(), self._squares, self._fourths,
            weight_error.numpy(),
        )  # fmt: skip


def _added(sums: npt.NDArray[np.float64], window: Tensor) -> npt.NDArray[np.float64]:
    rounded = window.clamp_max(_FLOAT32_MAX).float().double().cpu().numpy()
    return add_exactly(sums, np.stack([rounded, np.zeros_like(rounded)]))


_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


class _CalibrationWeights(CheckpointWeights):
    """Reports a NaN or infinity in the weight itself rather than in the resulting activation.

    Reads only the embedding rows that are looked up, and records the error that int8 rows would cause in each column.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        super().__init__(checkpoint, torch.float32)
        self._squares: dict[str, Tensor | int] = {}
        self._device = device
        self._mapped = MappedFiles()

    def tensor(
        self, module: Module, kind: str = "weight", dtype: torch.dtype | None = None
    ) -> Tensor:
        tensor = super().tensor(module, kind, dtype)
        self._check(tensor, module, kind)
        if module.group and kind == "weight":
            first = module.group[0]
            self._squares[first] = self._squares.get(first, 0) + _column_errors(
                tensor.t() if module.transposed else tensor
            )
        return tensor if module.layer is None else tensor.to(self._device)

    def lookup(self, module: Module) -> Lookup:
        stored = find_tensor(self.checkpoint, module)
        if stored.dtype not in TORCH_DTYPES or not isinstance(stored.file, LocalFile):
            return super().lookup(module)
        table = self._mapped.tensor(stored)

        def look_up(rows: Tensor) -> Tensor:
            found = F.embedding(rows, table).float()
            self._check(found.flatten(0, -2), module, "weight", rows.flatten())
            return found

        return look_up

    def error(self, path: str) -> Tensor:
        """Error of each column, float32 ``[in]``, for the input whose first linear is ``path``."""
        return torch.as_tensor(self._squares[path]).sqrt().float()

    def _check(self, tensor: Tensor, module: Module, kind: str, rows: Tensor | None = None) -> None:
        finite = tensor.isfinite()
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0, 0])
            row = row if rows is None else int(rows[row])
            raise non_finite_weight(find_tensor(self.checkpoint, module, kind), row)


def _column_errors(weight: Tensor) -> Tensor:
    """Squared error of int8 rows summed over rows, float64 ``[in]``, for a weight ``[out, in]``."""
    total = torch.zeros(weight.shape[1], dtype=torch.float64)
    for rows in torch.split(weight, max(1, _ROWS_AT_ONCE // max(weight.shape[1], 1))):
        scale = rows.abs().amax(dim=1, keepdim=True) / 127
        steps = rows / scale.masked_fill(scale == 0, 1.0)
        total += ((steps - steps.round()) * scale).double().square_().sum(dim=0)
    return total


def _windows(
    checkpoint: Checkpoint,
    architecture: Architecture,
    texts: Sequence[Path],
    tokens: int | None,
    context: int | None,
    seed: int,
) -> tuple[list[Tensor], tuple[tuple[str | None, int], ...]]:
    """Token ids of each window, and the checksum and number of tokens used of each text."""
    config = architecture.config
    if context is not None:
        check_context(context, config.max_positions, CalibrationError)
    context = context or min(CONTEXT, config.max_positions)
    read = [read_text(path, CalibrationError) for path in texts] or [_built_in()]
    try:
        tokenizer = Tokenizer.load(checkpoint.folder)
    except TokenizerError:
        if texts:
            raise
        generator = torch.Generator().manual_seed(seed)
        shape = (-(-(tokens or RANDOM_TOKENS) // context), context)
        ids = torch.randint(config.vocab_size, shape, generator=generator)
        return list(ids.unbind()), ((None, ids.numel()),)
    windows: list[tuple[int, Tensor]] = []
    for number, text in enumerate(read):
        ids = encode(tokenizer, text, config.vocab_size, checkpoint.folder, CalibrationError)
        if len(ids) < context:
            if texts:
                raise too_short(text, len(ids), context, CalibrationError)
            ids = ids.repeat(-(-context // len(ids)))
        windows += [(number, window) for window in disjoint_windows(ids, context)]
    if tokens is not None:
        windows = _drawn(windows, -(-tokens // context), seed)
    counts = [sum(len(w) for n, w in windows if n == number) for number in range(len(read))]
    used = tuple((t.xxh3_128, count) for t, count in zip(read, counts, strict=True) if count)
    return [window for _, window in windows], used


def _drawn(windows: list[tuple[int, Tensor]], count: int, seed: int) -> list[tuple[int, Tensor]]:
    """``count`` random windows, in their original order."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(windows), generator=generator)[:count].sort().values
    return [windows[number] for number in chosen.tolist()]


def _built_in() -> Text:
    data = (resources.files(__package__) / "calibration_text.txt").read_bytes()
    return Text("the built-in text", data.decode(), checksum(data))
