"""Find each input's channel magnitudes: run a short text through the source, one block in memory at a time.

The blocks are the runtime's decoder in float32 on the source's own weights, so what is measured is what the
source computes; an observer at each group of linears keeps the largest magnitude of every channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import CalibrationError, TokenizerError
from ..formats.checkpoint import Checkpoint
from ..formats.checksum import checksum
from ..runtime.architecture import Architecture, Module, find_tensor
from ..runtime.decoder import Block, Embedding
from ..runtime.tokenizer import Tokenizer
from ..runtime.weights import CheckpointWeights
from .stream import non_finite_weight

Progress = Callable[[int, int], None]
"""Called with blocks done and blocks in all."""

TOKENS: Final = 1024
CONTEXT: Final = 256
_SEED: Final = 0


@dataclass(frozen=True)
class Calibration:
    """What was measured, and on what."""

    absmax: dict[str, npt.NDArray[np.float32]]
    """Largest magnitude of each input channel ``[in]``, by the path of the group's first linear."""
    text: str | None
    """Checksum of the text; None for random tokens."""
    windows: int
    context: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        if self.text is not None:
            return ()
        return ("the source has no usable tokenizer: calibrated on random tokens",)

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "text": self.text,
            "tokens": self.windows * self.context,
            "context": self.context,
            "rule": "absmax >= 4 * median, at most max(16, 1 %) columns",
        }


@torch.inference_mode()
def calibrate(
    checkpoint: Checkpoint, architecture: Architecture, progress: Progress
) -> Calibration:
    """Measure a source checkpoint on the built-in text (random tokens if it has no usable tokenizer).

    Raises:
        CalibrationError: an activation is NaN or infinite; names module and channel.
        NonFiniteWeightError: a weight is; names tensor and row.
        CheckpointError: a tensor is absent or has another shape than the config implies.
    """
    windows, text = _token_windows(checkpoint, architecture)
    weights = _FiniteWeights(checkpoint, torch.float32)
    absmax: dict[str, npt.NDArray[np.float32]] = {}

    def observe(module: Module, x: Tensor) -> None:
        largest = x.abs().flatten(0, -2).amax(dim=0)
        if not bool(largest.isfinite().all()):
            channel = int((~largest.isfinite()).nonzero()[0])
            raise CalibrationError(
                f"activation is NaN or infinite in channel {channel}", file=checkpoint.folder,
                tensor=f"{module.path}.weight",
                hint="the source overflows; --outliers none converts without running it",
            )  # fmt: skip
        absmax[module.path] = largest.numpy()

    layers = architecture.config.num_layers
    x, tables = Embedding(architecture, weights, torch.float32)(windows)
    for layer in range(layers):
        progress(layer, layers)
        x = Block(architecture, layer, weights, observe)(x, tables)
    progress(layers, layers)
    return Calibration(absmax, text, *windows.shape)


class _FiniteWeights(CheckpointWeights):
    """Refuses a NaN or an infinity where it stands, rather than in the activation that it leads to."""

    def tensor(self, module: Module, kind: str = "weight") -> Tensor:
        tensor = super().tensor(module, kind)
        finite = tensor.isfinite()
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0, 0])
            raise non_finite_weight(find_tensor(self.checkpoint, module, kind), row)
        return tensor


def _token_windows(checkpoint: Checkpoint, architecture: Architecture) -> tuple[Tensor, str | None]:
    """Token ids ``[windows, context]`` and the text's checksum."""
    config = architecture.config
    context = min(CONTEXT, config.max_positions)
    windows = -(-TOKENS // context)
    try:
        tokenizer = Tokenizer.load(checkpoint.folder)
    except TokenizerError:
        generator = torch.Generator().manual_seed(_SEED)
        shape = (windows, context)
        return torch.randint(config.vocab_size, shape, generator=generator), None
    data = (resources.files(__package__) / "calibration_text.txt").read_bytes()
    ids = tokenizer.encode(data.decode())
    if not ids or max(ids) >= config.vocab_size:
        raise CalibrationError(
            "the tokenizer gives tokens outside the vocabulary", file=checkpoint.folder,
            expected=f"0..{config.vocab_size - 1}", found=max(ids, default=None),
            hint="tokenizer and config.json do not belong together",
        )  # fmt: skip
    ids = (ids * -(-windows * context // len(ids)))[: windows * context]
    return torch.tensor(ids).reshape(windows, context), checksum(data)
