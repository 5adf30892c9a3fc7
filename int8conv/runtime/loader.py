"""``load``: from a folder to a model."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Final

import torch

from ..errors import ArgumentError, NotFoundError
from ..formats.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from ..formats.converted import is_converted, open_converted
from ..formats.hub import resolve
from ..formats.json_file import read_json
from ..formats.source_checks import check_not_quantized
from ..kernels import MODES, Mode
from .architecture import read_architecture
from .decoder import Decoder
from .model import Model
from .weights import CheckpointWeights, ConvertedWeights, Weights

DTYPES: Final = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def load(
    path: str | os.PathLike[str],
    device: str = "cpu",
    mode: Mode | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    net: bool = True,
) -> Model:
    """Load a converted folder, or an unconverted checkpoint in its own precision.

    Args:
        path: a folder written by ``convert``, or a Hugging Face checkpoint folder of a known family, or the id of either
            on the hub: ``org/name`` or ``org/name@revision``.
        device: ``"cpu"``.
        mode: how activations meet int8 weights: ``"w8a16"``, ``"w8a8"``, or None to choose by the number of tokens.
        net: whether W8A8 has its safety net: activations past the threshold of their input are multiplied in 16 bits.
        dtype: of activations and cache; None is float32, the fastest on a CPU. A source's 16-bit weights are exact in it.

    Raises:
        NotFoundError: no such folder, or nothing to load in it.
        HubError: it cannot be downloaded.
        ArgumentError: an unknown device, mode or dtype; a mode for an unconverted checkpoint.
        UnsupportedModelError: a family, or a feature of its config, that the runtime does not know.
        CheckpointError, SafetensorsError, ConvertedFormatError: a malformed folder.
    """
    chosen = _dtype(dtype)
    if device != "cpu":
        raise ArgumentError("device", expected="cpu", found=device)
    if mode is not None and mode not in MODES:
        raise ArgumentError("mode", expected=" or ".join(MODES), found=repr(mode))
    source = resolve(path)
    folder = source.folder
    weights: Weights
    if is_converted(folder):
        converted = open_converted(folder)
        checkpoint = converted.checkpoint
        weights = ConvertedWeights(converted, chosen, mode, net=net)
    else:
        if mode is not None:
            raise ArgumentError("mode is for converted folders", file=folder, found=repr(mode),
                                hint="an unconverted checkpoint runs in its own precision")  # fmt: skip
        checkpoint = open_checkpoint(folder, only=source.only)
        check_not_quantized(checkpoint)
        weights = CheckpointWeights(checkpoint, chosen)
    config_file = folder / CONFIG_FILE
    architecture = read_architecture(checkpoint.config, checkpoint.tensors, config_file)
    model = Model(folder, Decoder(architecture, weights, chosen), _end_tokens(checkpoint))
    if isinstance(weights, ConvertedWeights):
        model.net_counters = weights.counters
    return model


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ArgumentError("dtype", expected=" or ".join(DTYPES), found=name)
    return DTYPES[name]


def _end_tokens(checkpoint: Checkpoint) -> frozenset[int]:
    """``eos_token_id`` of generation_config.json, else of the config: an integer or a list."""
    settings: dict[str, Any] = {}
    with suppress(NotFoundError):
        settings = read_json(checkpoint.folder / "generation_config.json")
    value = settings.get("eos_token_id", checkpoint.config.get("eos_token_id"))
    values = value if isinstance(value, list) else [value]
    return frozenset(v for v in values if type(v) is int)
