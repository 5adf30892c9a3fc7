"""``load``: from a folder to a model."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import torch

from ..errors import ArgumentError
from ..formats.hub.download import resolve
from ..formats.int8.folder import ConvertedFolder, is_converted, open_converted
from ..formats.source.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from ..formats.source.checks import check_not_quantized
from ..kernels.dispatch import MODES, Mode
from .decoder.decoder import Decoder
from .model import Model
from .models.architecture import Architecture, read_architecture
from .models.generation_config import read_generation_defaults
from .weights.weights import CheckpointWeights, ConvertedWeights, Weights

if TYPE_CHECKING:
    from .backends.gpu.weights import DeviceCheckpoint, DeviceConverted

DTYPES: Final = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
KV_CACHES: Final = DTYPES | {"int8": torch.int8}


def load(
    path: str | os.PathLike[str],
    device: str = "cpu",
    mode: Mode | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    outlier_fallback: bool = True,
    kv_cache: str | None = None,
) -> Model:
    """Load a converted folder, or an unconverted checkpoint in its own precision.

    Args:
        path: a folder written by ``convert``, or a Hugging Face checkpoint folder of a known family, or the id of either
            on the hub: ``org/name`` or ``org/name@revision``.
        device: ``"cpu"``, or ``"cuda"`` for PyTorch's current GPU (Ampere or newer).
        mode: how activations meet int8 weights: ``"w8a16"``, ``"w8a8"``, or None to choose by the number of tokens.
        fallback: whether W8A8 has its outlier fallback: activations past the threshold of their input are multiplied in 16 bits.
        dtype: of activations; None is float32 on a CPU, the fastest there, in which a source's 16-bit weights are
            exact, and the embedding's own on a GPU, where it has to be a 16-bit one.

        kv_cache: of keys and values in the cache: None for the dtype of activations, ``"float32"``, ``"float16"``, ``"bfloat16"``,
            or ``"int8"`` with a scale for each head and token. On a GPU the dtype of activations or ``"int8"``.

    Raises:
        NotFoundError: no such folder, or nothing to load in it.
        HubError: it cannot be downloaded.
        ArgumentError: an unknown device, mode, dtype or kv_cache; a mode for an unconverted checkpoint.
        UnsupportedModelError: a family, or a feature of its config, that the runtime does not know.
        CheckpointError, SafetensorsError, ConvertedFormatError: a malformed folder.
    """
    check_device(device)
    if mode is not None and mode not in MODES:
        raise ArgumentError("mode", expected=" or ".join(MODES), found=repr(mode))
    source = resolve(path)
    folder = source.folder
    weights: Weights
    on_gpu: DeviceConverted | DeviceCheckpoint | None = None
    if is_converted(folder):
        converted = open_converted(folder)
        checkpoint = converted.checkpoint
    else:
        if mode is not None:
            raise ArgumentError("mode is for converted folders", file=folder, found=repr(mode),
                                hint="an unconverted checkpoint runs in its own precision")  # fmt: skip
        checkpoint = open_checkpoint(folder, only=source.only)
        check_not_quantized(checkpoint)
        converted = None
    config_file = folder / CONFIG_FILE
    architecture = read_architecture(checkpoint.config, checkpoint.tensors, config_file)
    chosen = choose_dtype(dtype, device, architecture, checkpoint)
    cached = cache_dtype(kv_cache, chosen, device)
    if device == "cuda" and converted is not None:
        weights = on_gpu = converted_on_gpu(
            converted, architecture, chosen, mode, outlier_fallback=outlier_fallback
        )
    elif device == "cuda":
        weights = on_gpu = _source_on_gpu(checkpoint, architecture, chosen)
    elif converted is not None:
        weights = ConvertedWeights(converted, chosen, mode, outlier_fallback=outlier_fallback)
    else:
        weights = CheckpointWeights(checkpoint, chosen)
    defaults = read_generation_defaults(folder, checkpoint.config)
    model = Model(folder, Decoder(architecture, weights, chosen, cached), defaults, mode)
    if on_gpu is not None:
        model.loading = on_gpu.files.finish()
    if isinstance(weights, ConvertedWeights):
        model.fallback_counters = weights.counters
    return model


def check_device(device: str) -> None:
    """Refuse a device that is unknown or not there.

    Raises:
        ArgumentError: says which.
    """
    if device not in ("cpu", "cuda"):
        raise ArgumentError("device", expected="cpu or cuda", found=device)
    if device == "cuda" and not torch.cuda.is_available():
        raise ArgumentError("device", expected="cpu: PyTorch finds no GPU here", found=device)
    if device == "cuda" and find_spec("triton") is None:
        raise ArgumentError("device", expected="cpu: triton is not installed", found=device)


def current_gpu() -> torch.device:
    """PyTorch's."""
    return torch.device("cuda", torch.cuda.current_device())


def converted_on_gpu(
    converted: ConvertedFolder, architecture: Architecture, dtype: torch.dtype, mode: Mode | None, *, outlier_fallback: bool
) -> DeviceConverted:  # fmt: skip
    """A converted folder that goes to the GPU as tensors are asked for."""
    from .backends.gpu.weights import DeviceConverted  # imports triton

    return DeviceConverted(
        converted,
        architecture.config,
        dtype,
        current_gpu(),
        mode,
        outlier_fallback=outlier_fallback,
    )


def _source_on_gpu(
    checkpoint: Checkpoint, architecture: Architecture, dtype: torch.dtype
) -> DeviceCheckpoint:
    from .backends.gpu.weights import DeviceCheckpoint  # imports triton

    return DeviceCheckpoint(checkpoint, architecture.config, dtype, current_gpu())


def cache_dtype(kv_cache: str | None, dtype: torch.dtype, device: str = "cpu") -> torch.dtype:
    """The dtype of a cache by its name; int8 stands for codes with scales, as in ``quantized_cache``.

    Raises:
        ArgumentError: there is no such cache, or not on this device.
    """
    if kv_cache is None:
        return dtype
    if kv_cache not in KV_CACHES:
        raise ArgumentError("kv_cache", expected=" or ".join(KV_CACHES), found=repr(kv_cache))
    if device != "cpu" and KV_CACHES[kv_cache] not in (dtype, torch.int8):
        raise ArgumentError("kv_cache on a GPU", expected=str(dtype).removeprefix("torch.") + " or int8",
                            found=kv_cache, hint="the dtype of activations, or run it on the CPU")  # fmt: skip
    return KV_CACHES[kv_cache]


def choose_dtype(
    dtype: str | torch.dtype | None, device: str, architecture: Architecture, checkpoint: Checkpoint
) -> torch.dtype:
    """Of activations: what was asked for, else float32 on a CPU and the embedding's 16 bits on a GPU.

    Raises:
        ArgumentError: not a dtype of that device.
    """
    allowed = {k: v for k, v in DTYPES.items() if device == "cpu" or v != torch.float32}
    if dtype is None:
        embed = checkpoint.tensors.get(f"{architecture.outside()['embed'].path}.weight")
        half = torch.bfloat16 if embed is not None and embed.dtype == "BF16" else torch.float16
        return torch.float32 if device == "cpu" else half
    name = str(dtype).removeprefix("torch.")
    if name not in allowed:
        raise ArgumentError("dtype", expected=" or ".join(allowed), found=name)
    return allowed[name]
