"""``benchmark``: how fast a model loads, processes a prompt and decodes, in how much memory, compared with the machine's limits.

Prompts are random tokens and decoding is greedy, so no tokenizer is needed. As in ``generate``, prompts are processed one by one
and in parts, steps for all sequences together.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ...errors import ArgumentError
from ...kernels.dispatch import Mode
from ...progress import Progress, silent
from ..backends.gpu.files import Loading
from ..devices import DeviceLike, Placement, current, find_placement
from ..generate.prefill import prefill
from ..loader import load_opened
from ..model import Model
from ..opening import open_model
from .footprint import Footprint, Setup, predictor_of
from .memory_use import MemoryUse, watch_memory
from .traffic import bandwidth, cached_fraction, now, step_bytes


@dataclass(frozen=True)
class Benchmark:
    """Measured seconds and bytes, and their medians over the runs."""

    path: str
    converted: bool
    device: str
    dtype: str
    """Dtype of activations and cache."""
    mode: Mode | None
    """None: chosen by the number of tokens."""
    prompt_tokens: int
    """Prompt tokens per sequence."""
    new_tokens: int
    """Steps after the prompt."""
    batch: int
    prefill_seconds: list[float]
    """Seconds of all prompts, per run."""
    decode_seconds: list[float]
    """Seconds of all steps, per run."""
    load_seconds: float
    """Until the model is ready; without imports."""
    first_token_seconds: float
    """Loading plus the first pass over the prompts, in which kernels are compiled and mapped files are read."""
    cached: float | None
    """Fraction of the weights files in the page cache beforehand; None if the system does not say."""
    file_bytes: int
    moved: Loading | None
    """On a GPU: what was copied to it, and how fast."""
    weight_bytes: int
    """Bytes of weights read per step."""
    bandwidth: float
    """Bytes per second: on a CPU for reading with the same number of threads, on a GPU for copying within its memory."""
    memory: MemoryUse
    predicted: Footprint

    @property
    def device_type(self) -> str:
        """``"cpu"`` or ``"cuda"``."""
        return "cpu" if self.memory.device is None else "cuda"

    @property
    def runs(self) -> int:
        return len(self.decode_seconds)

    @property
    def prefill_speed(self) -> float:
        """Tokens per second, over all sequences."""
        return self.batch * self.prompt_tokens / median(self.prefill_seconds)

    @property
    def decode_speed(self) -> float:
        """Tokens per second, over all sequences."""
        return self.batch * self.new_tokens / median(self.decode_seconds)

    @property
    def weight_speed(self) -> float:
        """Bytes of weights per second while decoding."""
        return self.weight_bytes * self.new_tokens / median(self.decode_seconds)

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        names = (
            "path", "converted", "device", "dtype", "mode", "prompt_tokens", "new_tokens", "batch", "runs",
        )  # fmt: skip
        moved = (
            {"moved_bytes": self.moved.nbytes, "moved_seconds": self.moved.seconds, "moved_bytes_per_second": self.moved.speed}
            if self.moved else {}
        )  # fmt: skip
        memory = {name: value for name, value in vars(self.memory).items() if value is not None}
        return {name: getattr(self, name) for name in names} | {
            "prefill": {"tokens_per_second": self.prefill_speed, "seconds": self.prefill_seconds},
            "decode": {
                "tokens_per_second": self.decode_speed, "seconds": self.decode_seconds,
                "weight_bytes_per_step": self.weight_bytes, "weight_bytes_per_second": self.weight_speed,
                "bandwidth": self.bandwidth, "share_of_bandwidth": self.weight_speed / self.bandwidth,
            },
            "loading": {
                "seconds": self.load_seconds, "first_token_seconds": self.first_token_seconds,
                "bytes": self.file_bytes, "in_page_cache": self.cached,
            } | moved,
            "memory": memory | {"predicted": self.predicted.to_json()},
        }  # fmt: skip


def benchmark(
    path: str | os.PathLike[str],
    device: DeviceLike = "cpu",
    mode: Mode | None = None,
    dtype: str | None = None,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    batch: int = 1,
    runs: int = 3,
    progress: Progress = silent,
) -> Benchmark:
    """Load a model, and run random prompts and decode steps ``runs`` times after a warm-up.

    Args:
        path: a converted folder or a source, or the hub id of either.
        device, mode, dtype: as for ``load``.
        prompt_tokens: prompt tokens per sequence.
        new_tokens: steps after the prompt; each reads all weights.
        batch: number of sequences.
        runs: number of measurements.
        progress: called as the work proceeds.

    Raises:
        ArgumentError: a number is below 1.
        GenerationError: prompt and new tokens do not fit the context.
        Int8convError: as for ``load``.
    """
    asked = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "runs": runs}
    for name, value in asked.items():
        if value < 1:
            raise ArgumentError(name, expected="1 or more", found=value)
    place, context = find_placement(device), prompt_tokens + new_tokens
    with current(place.device):
        measured = _measure(path, place, mode, dtype, asked, batch, progress)
    model, opened = measured.model, measured.model.opened
    return Benchmark(
        path=str(path), converted=opened.converted is not None, device=_device_name(place.device),
        dtype=str(model.decoder.dtype).removeprefix("torch."), mode=mode,
        prompt_tokens=prompt_tokens, new_tokens=new_tokens, batch=batch,
        prefill_seconds=[prefill for prefill, _ in measured.runs],
        decode_seconds=[decode for _, decode in measured.runs],
        load_seconds=measured.loaded, first_token_seconds=measured.answered, cached=measured.cached,
        file_bytes=opened.checkpoint.nbytes, moved=model.loading,
        weight_bytes=step_bytes(opened, model.decoder.dtype, batch),
        bandwidth=bandwidth(place.device), memory=measured.memory,
        predicted=model.predictor().at(context, batch, prompt=prompt_tokens),
    )  # fmt: skip


@dataclass(frozen=True)
class _Measured:
    """A model and its measurements."""

    model: Model
    cached: float | None
    loaded: float
    answered: float
    runs: list[tuple[float, float]]
    memory: MemoryUse


def _measure(
    path: str | os.PathLike[str], place: Placement, mode: Mode | None, dtype: str | None, sizes: dict[str, int], batch: int,
    tell: Progress,
) -> _Measured:  # fmt: skip
    if place.kind == "cuda":
        from ..backends.gpu import weights  # noqa: F401  (imports are not counted)
    prompt_tokens, new_tokens, device = sizes["prompt_tokens"], sizes["new_tokens"], place.device
    started = now(device)
    opened = open_model(path)
    opening = now(device) - started
    # refuses invalid requests before any work
    predictor_of(opened, Setup(), convert=True).at(prompt_tokens + new_tokens, batch)
    cached = cached_fraction({tensor.file: None for tensor in opened.checkpoint.tensors.values()})
    tell("load", 0, 1)
    memory = watch_memory(device)
    started = now(device) - opening
    model = load_opened(opened, place, mode, dtype)
    loaded = now(device) - started
    tell("load", 1, 1)
    steps = _Steps(model, prompt_tokens, new_tokens, batch)
    first = steps.prefill()
    answered = now(device) - started
    steps.decode(first, 1)
    runs = []
    for run in range(sizes["runs"]):
        runs.append(steps.timed())
        tell("runs", run + 1, sizes["runs"])
    return _Measured(model, cached, loaded, answered, runs, memory.use(model.folder))


class _Steps:
    """Repeated prompts and steps on one cache, so that a CUDA graph of the step stays valid."""

    def __init__(self, model: Model, prompt_tokens: int, new_tokens: int, batch: int) -> None:
        decoder = self._decoder = model.decoder
        self._new_tokens = new_tokens
        self._device = decoder.backend.device
        self._cache = decoder.cache(batch=batch, capacity=prompt_tokens + new_tokens)
        self._step = decoder.backend.steps(decoder, self._cache)
        generator = torch.Generator().manual_seed(0)
        shape = (batch, prompt_tokens)
        ids = torch.randint(model.config.vocab_size, shape, generator=generator)
        self._prompts = ids.to(self._device)

    def prefill(self) -> Tensor:
        """Process all prompts one by one from an empty cache; returns the next tokens ``[b, 1]``."""
        self._cache.truncate(0)
        found = []
        for i, prompt in enumerate(self._prompts):
            part = self._cache.sequence(i) if len(self._prompts) > 1 else self._cache
            logits = prefill(self._decoder, prompt[None], part)
            found.append(logits[:, -1].argmax(-1, keepdim=True))
        return torch.cat(found)

    def decode(self, tokens: Tensor, steps: int) -> None:
        for _ in range(steps):
            tokens = self._step(tokens)[:, -1].argmax(-1, keepdim=True)

    def timed(self) -> tuple[float, float]:
        """Seconds of all prompts and of all steps."""
        started = now(self._device)
        tokens = self.prefill()
        prefilled = now(self._device)
        self.decode(tokens, self._new_tokens)
        return prefilled - started, now(self._device) - prefilled


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
