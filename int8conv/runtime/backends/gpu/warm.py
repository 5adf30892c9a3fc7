"""Compiling ahead of time what loading and running a model will launch; imports triton.

The decoder is built from the files' headers alone, on PyTorch's meta device, and runs prompts, steps and samplers there: every launch then
has the arguments of a real one, but for addresses, which are as aligned, and nothing is computed. Kernels differ by the number
of tokens only where the table of launch configurations or a power of two says so, so a few lengths stand for all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ....formats.safetensors.storage import WeightsFile
from ....formats.safetensors.stored import StoredTensor
from ....host import processors
from ....kernels.dispatch import Mode, check_mode
from ....kernels.gpu import configs
from ....kernels.weight import MixedWeight
from ....progress import Progress, silent
from ...decoder.block import Block
from ...decoder.decoder import Decoder
from ...decoder.ffn.mixture import Expert, MixtureOfExperts
from ...decoder.working_sizes import PREFILL_TOKENS
from ...devices import Target, current
from ...generate.sampler import Request
from ...generate.sampling import Sampling
from ...loader import cache_dtype, check_mode_applies, choose_dtype
from ...opening import OpenedModel, open_model
from .backend import GpuBackend
from .compiling import ahead_of_time, cache_folder, listening
from .files import DeviceFiles, DeviceTensors
from .projections import QuantizedProjection
from .sampler import DeviceSampler
from .weights import DeviceCheckpoint, DeviceConverted

META: Final = torch.device("meta")
_FEW: Final = 65
"""Tokens whose logits may all be needed: guesses, and texts that are scored."""


@dataclass(frozen=True)
class Warmed:
    """What has been compiled."""

    capability: int
    """Of the GPU, as one number."""
    kernels: int
    """In all, as Triton tells them apart."""
    compiled: int
    """Those of them that were not in the cache."""
    seconds: float
    compile_seconds: float
    """The sum of what each compiled kernel took."""
    folder: str
    """Triton's cache."""


def warm(
    path: str | os.PathLike[str], target: Target, *, batches: Iterable[int] = (1,), mode: Mode | None = None, dtype: str | None = None,
    kv_cache: str | None = None, outlier_fallback: bool = True, jobs: int | None = None, progress: Progress = silent,
) -> Warmed:  # fmt: skip
    """Compile into Triton's cache what a model launches.

    Args:
        path: as for ``load``; of a model on the hub that is not converted, only headers are read.
        target: the GPU to compile for.
        batches: numbers of sequences of a step; fewer are included.
        mode: as for ``load``, as are ``dtype``, ``kv_cache`` and ``outlier_fallback``.
        dtype: dtype of activations.
        kv_cache: dtype of the cache.
        outlier_fallback: whether values in it are counted.
        jobs: kernels to compile at a time; None: as many as there are processors.
        progress: called with the number of kernels so far.

    Raises:
        ArgumentError: an option is invalid, or Triton interprets.
        DeviceError: a kernel cannot be compiled.
        UnsupportedModelError: the model cannot run on a GPU.
        NotFoundError, HubError, CheckpointError, SafetensorsError, ConvertedFormatError: as for ``load``.
    """
    started, times = time.perf_counter(), list[float]()
    check_mode(mode)
    opened = open_model(path, headers_only=True)
    check_mode_applies(opened, mode)
    chosen = choose_dtype(dtype, "cuda", opened)
    cached = cache_dtype(kv_cache, chosen, "cuda")

    def on_compiled(_name: str, seconds: float) -> None:
        times.append(seconds)
        progress("compile", len(times), compiler.count)

    with (
        current(target.device or META),
        listening(on_compiled),
        ahead_of_time(target, jobs or processors()) as compiler,
    ):
        decoder = decoder_of(opened, chosen, cached, mode, outlier_fallback=outlier_fallback)
        launch_everything(decoder, target.capability, sorted({1, *batches}))
    return Warmed(
        target.capability, len(times), sum(seconds > 0 for seconds in times), time.perf_counter() - started, sum(times), cache_folder(),
    )  # fmt: skip


@torch.inference_mode()
def launch_everything(decoder: Decoder, capability: int, batches: Sequence[int]) -> None:
    """Prompts of every length, steps of every batch up to those, and their samplers."""
    for tokens in lengths(capability):
        ids = torch.empty(1, tokens, dtype=torch.int64, device=META)
        for last_only in (True, False) if tokens <= _FEW else (True,):
            cache = decoder.cache(batch=1, capacity=PREFILL_TOKENS["cuda"])
            decoder.forward(ids, cache, last_only=last_only)
    for batch in _steps(capability, decoder.config.num_kv_heads, batches):
        ids = torch.empty(batch, 1, dtype=torch.int64, device=META)
        decoder.forward(ids, decoder.cache(batch=batch, capacity=64), last_only=True)
        _draw(decoder.config.vocab_size, batch)


def lengths(capability: int) -> list[int]:
    """Numbers of tokens that stand for all up to a part of a prompt: those on both sides of each bound."""
    most = PREFILL_TOKENS["cuda"]
    return sorted(
        {n for bound in _bounds(capability) for n in (bound, bound + 1) if n <= most} | {most}
    )


def _bounds(capability: int) -> set[int]:
    powers = {1 << i for i in range(7)}
    return powers | configs.token_bounds(capability)


def _steps(capability: int, kv_heads: int, batches: Sequence[int]) -> list[int]:
    """Batches that stand for all of up to the largest one; attention counts them times heads."""
    bounds = _bounds(capability)
    counted = bounds | {bound // kv_heads for bound in bounds}
    found = {n for bound in counted for n in (bound, bound + 1) if 0 < n <= max(batches)}
    return sorted(found | set(batches))


class _Sampler(DeviceSampler):
    """Leaves its tokens where they are: they have no values."""

    def _host_memory(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.empty(batch, dtype=torch.int64, device=META), torch.empty(batch, device=META)


def _draw(vocab: int, batch: int) -> None:
    """From logits of a batch, and from those of one of several sequences."""
    requests = [Request([0], Sampling(), logprobs=False)] * batch
    _Sampler(requests, vocab, META).sample(torch.empty(batch, vocab, device=META), range(batch))
    one = torch.empty(2, vocab, device=META)[1:]
    _Sampler(requests[:1], vocab, META).sample(one, [0])


class _Buffers:
    """Shards that are never filled."""

    _buffers: dict[WeightsFile, Tensor]

    def _buffer(self, file: WeightsFile) -> Tensor:
        if file not in self._buffers:
            self._buffers[file] = self._plan(file)[0]  # type: ignore[attr-defined]
        return self._buffers[file]


class _Files(_Buffers, DeviceFiles):
    """Of a converted folder."""


class _Tensors(_Buffers, DeviceTensors):
    """Of a source."""


class _Converted(DeviceConverted):
    """A converted folder's headers."""

    def __init__(self, opened: OpenedModel, dtype: torch.dtype, mode: Mode | None, *, outlier_fallback: bool) -> None:  # fmt: skip
        assert opened.converted is not None
        config = opened.architecture.config
        super().__init__(opened.converted, config, dtype, META, mode, outlier_fallback=outlier_fallback)  # fmt: skip
        self._files = self.files = _Files(META)

    def _checked(self, index: StoredTensor, in_features: int) -> Tensor:
        return self._files.tensor(index).clone()


class _Checkpoint(DeviceCheckpoint):
    """A source's headers; what has to be decoded on the host is small, but for weights of four and eight bits."""

    def __init__(self, opened: OpenedModel, dtype: torch.dtype) -> None:
        super().__init__(opened.checkpoint, opened.architecture.config, dtype, META)
        self.files = _Tensors(opened.checkpoint.tensors.values(), dtype, META)


def decoder_of(
    opened: OpenedModel, dtype: torch.dtype, kv_cache: torch.dtype, mode: Mode | None = None, *, outlier_fallback: bool = True
) -> Decoder:  # fmt: skip
    """On the meta device; of a mixture's experts, those that differ in what is compiled for them."""
    weights = (
        _Checkpoint(opened, dtype) if opened.converted is None
        else _Converted(opened, dtype, mode, outlier_fallback=outlier_fallback)
    )  # fmt: skip
    assert isinstance(weights.backend, GpuBackend)
    decoder = Decoder(opened.architecture, weights, dtype, kv_cache)
    for block in decoder.blocks:
        if isinstance(block, Block) and isinstance(block.ffn, MixtureOfExperts):
            block.ffn.experts = list(_different(block.ffn.experts))
    return decoder


def _different(experts: Sequence[Expert]) -> Iterator[Expert]:
    seen = set[object]()
    for expert in experts:
        kind = _kind(expert)
        if kind not in seen:
            seen.add(kind)
            yield expert


def _kind(expert: Expert) -> tuple[Any, ...]:
    """Shapes, numbers of outlier columns and alignment of an expert's weights; of others, that each is its own kind."""
    parts = expert.parts
    if parts is None:
        return (id(expert),)
    return tuple(
        _of(p.weight) if isinstance(p, QuantizedProjection) else type(p) for p in (parts.wide, parts.down)
    )  # fmt: skip


def _of(weight: MixedWeight) -> tuple[Any, ...]:
    tensors = (weight.codes, weight.scale, weight.outlier_index, weight.outlier_weight)
    form = [(t.shape, t.dtype, t.data_ptr() % 16) for t in tensors if t is not None]
    return (*form, weight.threshold is None, weight.activation_bits)
