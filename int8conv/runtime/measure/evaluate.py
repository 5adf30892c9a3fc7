"""Perplexity of a model on a text, and a converted model's divergence from its source; both streamed block by block.

Windows of W tokens of the text start every S tokens, each behind what the tokenizer puts before every prompt, such as BOS (which W
counts). A window scores its last S positions (the first window all that it can), so that every token, except the first where
nothing is before it, is scored once, with at least W - S preceding tokens where there are that many; with S = W, windows are
disjoint, and where nothing is before them their first tokens are not scored.

    perplexity = exp(-mean log q(token)),   KL = sum over the vocabulary of p log(p / q),   p the source, q the converted
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ...errors import ArgumentError, EvaluationError, SourceMismatchError
from ...kernels.dispatch import MODES, Mode
from ...kernels.weight import FallbackCounter
from ...progress import Progress, silent
from ..devices import DeviceLike, Placement, current, find_placement
from ..loader import cache_dtype, choose_dtype, converted_weights
from ..models.architecture import Architecture
from ..opening import OpenedModel, open_model
from ..text.tokenizer import Tokenizer
from ..weights.streaming import BlockStream
from ..weights.weights import CheckpointWeights, ConvertedWeights, Weights
from .fallback import FallbackReport, fallback_report
from .scoring import Scores, relative_rms, score
from .windows import check_context, encode, leading_tokens, read_text, too_short, windows_at

WINDOW: Final = 512


@dataclass(frozen=True)
class LayerError:
    """The error of a layer's output relative to the source's; each model runs on its own hidden states."""

    layer: int
    relative_rms: float
    """RMS of the difference divided by the RMS of the source's output."""


@dataclass(frozen=True)
class Comparison:
    """A converted model compared with its source over the same positions."""

    perplexity: float
    """Perplexity of the source."""
    ratio: float
    """The converted model's perplexity divided by the source's."""
    kl_mean: float
    """Nats per position."""
    kl_worst: float
    worst_position: int
    """Index of that token in the text."""
    top1: float
    """Fraction of positions at which both models have the same most likely token."""
    layers: tuple[LayerError, ...]


@dataclass(frozen=True)
class Evaluation:
    """The results, and what they were measured on."""

    perplexity: float
    window: int
    stride: int
    tokens: int
    """Number of tokens of the text that were run."""
    scored: int
    """Number of tokens that were scored."""
    text: str
    """Checksum of the text."""
    mode: Mode | None
    """None for a source in its own precision."""
    dtype: str = "float32"
    """Dtype of activations."""
    kv_cache: str | None = None
    """The simulated KV cache; None: none, keys and values stayed in float32."""
    outlier_fallback: FallbackReport | None = None
    against: Comparison | None = None

    def to_json(self) -> dict[str, Any]:
        """All figures as JSON values."""
        value = asdict(self)
        value["outlier_fallback"] = (
            None if self.outlier_fallback is None else self.outlier_fallback.to_json()
        )
        return value


@dataclass
class _Model:
    """A model to stream."""

    folder: Path
    architecture: Architecture
    weights: Weights
    counters: Mapping[str, FallbackCounter] = field(default_factory=dict)
    kv_cache: torch.dtype | None = None


@torch.inference_mode()
def evaluate(
    path: str | os.PathLike[str],
    text: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    mode: Mode = "w8a8",
    outlier_fallback: bool = True,
    kv_cache: str | None = None,
    device: DeviceLike = "cpu",
    window: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a converted folder or a source on a text.

    Args:
        path: a converted folder or a source, or the hub id of either.
        text: a UTF-8 text file.
        against: the converted folder's source, to compare with: adds its perplexity, KL divergence, agreement and errors by
            layer.
        mode: activations in 16 or 8 bits, as in ``load``.
        outlier_fallback: whether W8A8 on a CPU multiplies activations at or above the threshold of their input in 16 bits; a GPU
            only counts them.
        kv_cache: as in ``load``: all keys and values of a window pass through such a cache (except those of ``against``), so
            that every token sees the same values as when decoding; None: they are not rounded.
        device: as in ``load``: on a GPU, a converted model is loaded completely and runs as ``load`` would run it, with
            16-bit activations; a source's blocks are copied there one by one, in float32.
        window: tokens per window, with BOS where the tokenizer puts it before prompts; None: 512, or fewer if the model has fewer
            positions.
        stride: tokens from the start of one window to the start of the next; None: as many as a window has of the text.
        tokens: number of tokens to use from the start of the text; None: all.
        progress: called as the work proceeds.

    Raises:
        EvaluationError: the text cannot be used, or an activation is NaN or infinite (names layer and channel).
        ArgumentError: an option is out of range.
        SourceMismatchError: ``against`` is not the source of the model.
        Int8convError: as for ``load``.
    """
    if mode not in MODES:
        raise ArgumentError("mode", expected=" or ".join(MODES), found=repr(mode))
    if tokens is not None and tokens < 2:
        raise ArgumentError("tokens", expected="2 or more", found=tokens)
    place = find_placement(device)
    model = _open(path, place, mode, outlier_fallback)
    models = [model]
    if kv_cache is not None:
        on = "cpu" if isinstance(model.weights, CheckpointWeights) else place.kind
        model.kv_cache = cache_dtype(kv_cache, model.weights.dtype, on)
    if against is not None:
        models.insert(0, _open_source(against, place))
        _check_same(models[0], model)
    cut = _cut(model, text, window, stride, tokens)
    with current(place.device):
        scores, errors = _run(models, cut, progress)
    converted = isinstance(model.weights, ConvertedWeights)
    return Evaluation(
        math.exp(scores.means()[0]), cut.window, cut.stride, cut.starts[-1] + cut.size, scores.scored, cut.text,
        mode if converted else None, str(model.weights.dtype).removeprefix("torch."), kv_cache,
        fallback_report(model.counters) if converted else None, _comparison(scores, cut, errors),
    )  # fmt: skip


@dataclass(frozen=True)
class _Cut:
    """A text cut into windows."""

    text: str
    """Checksum."""
    window: int
    stride: int
    starts: range
    """Index of each window's first token of the text."""
    leading: int
    """Number of tokens before it in the window."""
    windows: list[Tensor]

    @property
    def size(self) -> int:
        """Tokens of the text per window."""
        return self.window - self.leading

    @property
    def firsts(self) -> list[int]:
        """The first position that each window scores."""
        first, later = max(1, self.leading), max(1, self.window - self.stride)
        return [first if number == 0 else later for number in range(len(self.windows))]


def _cut(
    model: _Model, text: str | os.PathLike[str], window: int | None, stride: int | None, tokens: int | None
) -> _Cut:  # fmt: skip
    config = model.architecture.config
    window = min(WINDOW, config.max_positions) if window is None else window
    check_context(window, config.max_positions, EvaluationError)
    content = read_text(Path(text), EvaluationError)
    tokenizer = Tokenizer.load(model.folder)
    leading = leading_tokens(tokenizer)[: window - 1]
    size = window - len(leading)
    stride = size if stride is None else stride
    if not 1 <= stride <= size:
        raise ArgumentError("stride", expected=f"1 to the window's {size}", found=stride)
    ids = encode(tokenizer, content, config.vocab_size, model.folder, EvaluationError)[:tokens]
    if len(ids) < size:
        raise too_short(content, len(ids), size, EvaluationError)
    starts = range(0, len(ids) - size + 1, stride)
    windows = windows_at(starts, ids, size, leading)
    return _Cut(content.xxh3_128, window, stride, starts, len(leading), windows)


def _open(
    path: str | os.PathLike[str], place: Placement, mode: Mode, outlier_fallback: bool
) -> _Model:
    opened = open_model(path)
    if opened.converted is None:
        return _source(opened, place)
    dtype = choose_dtype(None, place.kind, opened)
    found = converted_weights(opened, place, dtype, mode, outlier_fallback=outlier_fallback)
    return _Model(opened.folder, opened.architecture, found, found.counters)


def _open_source(path: str | os.PathLike[str], place: Placement) -> _Model:
    opened = open_model(path)
    if opened.converted is not None:
        raise ArgumentError("against expects the source", file=path, found="a converted folder")
    return _source(opened, place)


def _source(opened: OpenedModel, place: Placement) -> _Model:
    """A source in float32, on any device."""
    weights = CheckpointWeights(opened.checkpoint, torch.float32, place.device)
    return _Model(opened.folder, opened.architecture, weights)


def _check_same(source: _Model, converted: _Model) -> None:
    """Refuse two models whose layers or vocabularies do not match."""
    for what in ("model_type", "num_layers", "hidden_size", "vocab_size"):
        expected = getattr(source.architecture.config, what)
        found = getattr(converted.architecture.config, what)
        if expected != found:
            raise SourceMismatchError(
                f"not the source of {converted.folder}: {what} differs", file=source.folder,
                expected=found, found=expected,
            )  # fmt: skip


def _run(
    models: Sequence[_Model], cut: _Cut, progress: Progress
) -> tuple[Scores, tuple[LayerError, ...]]:
    """Advance all models layer by layer, with one block of one model in memory at a time, and score the result."""
    streams = [
        BlockStream(m.architecture, m.weights, cut.windows, kv_cache=m.kv_cache) for m in models
    ]
    errors = []
    layers = models[0].architecture.config.num_layers
    for layer in range(layers):
        progress("blocks", layer, layers)
        for model, stream in zip(models, streams, strict=True):
            stream.advance(layer)
            _check_finite(model, stream, layer)
        if len(streams) == 2:
            errors.append(LayerError(layer, relative_rms(streams[0], streams[1])))
    progress("blocks", layers, layers)
    return score(streams, cut.windows, cut.firsts, progress), tuple(errors)


def _comparison(scores: Scores, cut: _Cut, errors: tuple[LayerError, ...]) -> Comparison | None:
    nll, source_nll = scores.means()
    if source_nll is None:
        return None
    window, position = scores.worst
    return Comparison(
        math.exp(source_nll), math.exp(nll - source_nll), scores.kl / scores.scored,
        scores.kl_worst, cut.starts[window] + position - cut.leading, scores.same / scores.scored, errors,
    )  # fmt: skip


def _check_finite(model: _Model, stream: BlockStream, layer: int) -> None:
    for hidden in stream.hidden:
        finite = hidden.isfinite().flatten(0, -2).all(dim=0)
        if not bool(finite.all()):
            channel = int((~finite).nonzero()[0])
            raise EvaluationError(
                f"activation is NaN or infinite after layer {layer} in channel {channel}",
                file=model.folder, hint="the model overflows on this text",
            )  # fmt: skip
