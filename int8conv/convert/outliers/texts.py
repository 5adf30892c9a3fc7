"""The windows of tokens that a source is run on: texts, a built-in one, or random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ...errors import CalibrationError, TokenizerError
from ...formats.safetensors.checksum import checksum
from ...formats.source.checkpoint import Checkpoint
from ...runtime.measure.windows import (
    Text,
    check_context,
    disjoint_windows,
    encode,
    leading_tokens,
    read_text,
    too_short,
)
from ...runtime.models.architecture import Architecture
from ...runtime.text.tokenizer import Tokenizer

CONTEXT: Final = 256
RANDOM_TOKENS: Final = 1024


def calibration_windows(
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
    leading = leading_tokens(tokenizer)[: context - 1]
    size = context - len(leading)
    windows: list[tuple[int, Tensor]] = []
    for number, text in enumerate(read):
        ids = encode(tokenizer, text, config.vocab_size, checkpoint.folder, CalibrationError)
        if len(ids) < size:
            if texts:
                raise too_short(text, len(ids), size, CalibrationError)
            ids = ids.repeat(-(-size // len(ids)))
        windows += [(number, window) for window in disjoint_windows(ids, context, leading)]
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
