"""``load``: load a model from a folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Literal, cast

import torch

from ..errors import ArgumentError
from ..kernels.dispatch import Mode, check_mode
from .decoder.decoder import Decoder
from .devices import DeviceKind, DeviceLike, Placement, current, find_placement
from .dtypes import CACHE_BYTES, FLOAT_BYTES
from .model import Model
from .models.generation_config import read_generation_defaults
from .opening import OpenedModel, open_model
from .text.tokenizer import TokenizerLike, read_tokenizer
from .weights.weights import CheckpointWeights, ConvertedWeights

if TYPE_CHECKING:
    from .backends.gpu.weights import DeviceCheckpoint, DeviceConverted

DTYPES: Final[dict[str, torch.dtype]] = {name: getattr(torch, name) for name in FLOAT_BYTES}
KV_CACHES: Final[dict[str, torch.dtype]] = {name: getattr(torch, name) for name in CACHE_BYTES}


def load(
    path: str | os.PathLike[str],
    device: DeviceLike = "cpu",
    mode: Mode | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    outlier_fallback: bool = True,
    kv_cache: str | None = None,
    tokenizer: TokenizerLike | Literal[False] | None = None,
) -> Model:
    """Load a converted folder, or an unconverted checkpoint in its own precision.

    Args:
        path: a folder written by ``convert_checkpoint``, a Hugging Face checkpoint folder of a known family, or the hub id of
            either: ``org/name`` or ``org/name@revision``.
        device: ``"cpu"``, ``"cuda"`` for PyTorch's current GPU (Ampere or newer), ``"cuda:1"``, or such a ``torch.device``.
        mode: activations in 16 bits (``"w8a16"``) or 8 bits (``"w8a8"``); None: chosen by the number of tokens.
        dtype: dtype of activations; None: float32 on a CPU (the fastest there, and exact for 16-bit weights of a source);
            on a GPU, which requires a 16-bit dtype, that of the embedding.
        outlier_fallback: whether W8A8 on a CPU multiplies activations at or above the threshold of their input in 16 bits; a GPU
            only counts them.
        kv_cache: dtype of the KV cache: ``"float32"``, ``"float16"``, ``"bfloat16"``, or ``"int8"`` with a scale per head and
            token; None: the dtype of activations. A GPU supports the dtype of activations and ``"int8"``.
        tokenizer: another than the folder's: of the tokenizers library, a fast one of transformers, or a folder that has one;
            False: none, token ids alone go in and come out.

    Raises:
        NotFoundError: there is no such folder, or nothing to load in it.
        HubError: it cannot be downloaded.
        ArgumentError: an unknown device, mode, dtype or kv_cache; a mode for an unconverted checkpoint; no tokenizer.
        TokenizerError: the tokenizer that is given is unusable.
        UnsupportedModelError: a family, or a feature of its config, that the runtime does not know.
        CheckpointError, SafetensorsError, ConvertedFormatError: a malformed folder.
        FileChangedError: somebody wrote to its files meanwhile.
    """
    place = find_placement(device)
    check_mode(mode)
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError("path", expected="a path or hub id", found=repr(path))
    given = tokenizer if tokenizer is None or tokenizer is False else read_tokenizer(tokenizer)
    model = load_opened(open_model(path), place, mode, dtype, outlier_fallback=outlier_fallback, kv_cache=kv_cache)  # fmt: skip
    model.use_tokenizer(given)
    return model


def load_opened(
    opened: OpenedModel, place: Placement, mode: Mode | None = None, dtype: str | torch.dtype | None = None,
    *, outlier_fallback: bool = True, kv_cache: str | None = None,
) -> Model:  # fmt: skip
    """``load`` for a model whose headers have already been read."""
    converted, architecture = opened.converted, opened.architecture
    check_mode_applies(opened, mode)
    chosen = choose_dtype(dtype, place.kind, opened)
    cached = cache_dtype(kv_cache, chosen, place.kind)
    weights: ConvertedWeights | CheckpointWeights
    with current(place.device):
        if converted is not None:
            weights = converted_weights(opened, place, chosen, mode, outlier_fallback=outlier_fallback)  # fmt: skip
        else:
            weights = _source_weights(opened, place, chosen)
        decoder = Decoder(architecture, weights, chosen, cached)
        defaults = read_generation_defaults(opened.folder, opened.config)
        model = Model(opened, decoder, defaults, mode)
        model.check_files = weights.check_files
        if place.kind == "cuda":
            model.loading = cast("DeviceConverted | DeviceCheckpoint", weights).files.finish()
    weights.check_files()
    if isinstance(weights, ConvertedWeights):
        model.fallback_counters = weights.counters
    return model


def check_mode_applies(opened: OpenedModel, mode: Mode | None) -> None:
    """Refuse a mode for an unconverted checkpoint.

    Raises:
        ArgumentError: there is one.
    """
    if opened.converted is None and mode is not None:
        raise ArgumentError("mode applies to converted folders only", file=opened.folder, found=repr(mode),
                            hint="an unconverted checkpoint runs in its own precision")  # fmt: skip


def converted_weights(
    opened: OpenedModel, place: Placement, dtype: torch.dtype, mode: Mode | None, *, outlier_fallback: bool
) -> ConvertedWeights:  # fmt: skip
    """A converted folder's weights: mapped on a CPU, copied to a GPU as tensors are requested."""
    assert opened.converted is not None
    if place.kind == "cpu":
        return ConvertedWeights(opened.converted, dtype, mode, outlier_fallback=outlier_fallback)
    from .backends.gpu.weights import DeviceConverted  # imports triton

    config = opened.architecture.config
    return DeviceConverted(opened.converted, config, dtype, place.device, mode, outlier_fallback=outlier_fallback)  # fmt: skip


def _source_weights(opened: OpenedModel, place: Placement, dtype: torch.dtype) -> CheckpointWeights:
    if place.kind == "cpu":
        return CheckpointWeights(opened.checkpoint, dtype)
    from .backends.gpu.weights import DeviceCheckpoint  # imports triton

    config = opened.architecture.config
    return DeviceCheckpoint(opened.checkpoint, config, dtype, place.device)


def cache_dtype(
    kv_cache: str | None, dtype: torch.dtype, device: DeviceKind = "cpu"
) -> torch.dtype:
    """The dtype of a cache by name; int8 means codes with scales, as in ``quantized_cache``.

    Raises:
        ArgumentError: there is no such cache, or this device does not support it.
    """
    if kv_cache is None:
        return dtype
    if not isinstance(kv_cache, str) or kv_cache not in KV_CACHES:
        raise ArgumentError("kv_cache", expected=" or ".join(KV_CACHES), found=repr(kv_cache))
    if device != "cpu" and KV_CACHES[kv_cache] not in (dtype, torch.int8):
        raise ArgumentError("kv_cache on a GPU", expected=str(dtype).removeprefix("torch.") + " or int8",
                            found=kv_cache, hint="use the dtype of activations, or run on the CPU")  # fmt: skip
    return KV_CACHES[kv_cache]


def choose_dtype(
    dtype: str | torch.dtype | None, device: DeviceKind, opened: OpenedModel
) -> torch.dtype:
    """The dtype of activations: as requested, otherwise float32 on a CPU and the embedding's 16-bit dtype on a GPU.

    Raises:
        ArgumentError: the device does not support the dtype.
    """
    allowed = {k: v for k, v in DTYPES.items() if device == "cpu" or v != torch.float32}
    if dtype is None:
        embed = opened.architecture.outside()["embed"]
        stored = opened.checkpoint.tensors.get(f"{embed.path}.weight")
        half = torch.bfloat16 if stored is not None and stored.dtype == "BF16" else torch.float16
        return torch.float32 if device == "cpu" else half
    name = str(dtype).removeprefix("torch.")
    if name not in allowed:
        raise ArgumentError("dtype", expected=" or ".join(allowed), found=name)
    return allowed[name]
