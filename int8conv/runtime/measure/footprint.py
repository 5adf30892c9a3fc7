"""Predicted memory of a model, from headers alone: weights by kind, KV cache, activations, compared with 16 bits.

Works for a converted folder, a source (as converted, or as it is), and a bare ``config.json``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...errors import ArgumentError, GenerationError
from ...formats.int8.folder import ConvertedFolder
from ...formats.int8.names import MANIFEST_FILE
from ...formats.json_file import read_json
from ...formats.source.checkpoint import CONFIG_FILE
from ...formats.source.weight_files import is_weights_name
from ..devices import DeviceKind, DeviceLike, device_kind
from ..dtypes import CACHE_BYTES, FLOAT_BYTES
from ..models.architecture import Architecture, find_tensor, read_architecture
from ..models.config import DecoderConfig
from ..opening import OpenedModel, open_model
from .activation_memory import activation_bytes
from .footprint_weights import (
    ESTIMATED,
    converted_weights,
    estimated_weights,
    loaded_weights,
    parameter_count,
    unread_rows,
)
from .tensor_parallel import rank_architecture, rank_weights

SCALE_BYTES: Final = 2
"""Bytes of the scale of one head and token in an int8 cache."""
MOST_BATCH: Final = 1 << 16


@dataclass(frozen=True)
class Footprint:
    """Predicted memory in bytes."""

    context: int
    batch: int
    device: DeviceKind
    dtype: str
    """Dtype of activations."""
    kv_dtype: str
    """Dtype of the cache."""
    weights: dict[str, int]
    """Bytes of weights by kind."""
    estimated: bool
    """Whether the weights are those that ``convert`` would produce, with an upper bound for outlier columns."""
    kv_cache: int
    activations: int
    """Peak of activations and other temporary memory in a pass."""
    weights_16bit: int
    """Bytes of the same parameters at two bytes each."""
    kv_cache_16bit: int
    activations_16bit: int
    """Cache and activations with 16-bit weights, activations and cache on the same device."""
    ranks: int = 1
    """All of it is that of one rank among these of tensor parallelism."""

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.kv_cache + self.activations

    @property
    def total_16bit(self) -> int:
        return self.weights_16bit + self.kv_cache_16bit + self.activations_16bit

    def to_json(self) -> dict[str, Any]:
        """All figures, including sums."""
        return {
            "context": self.context, "batch": self.batch, "device": self.device, "dtype": self.dtype,
            "kv_dtype": self.kv_dtype, **({"tensor_parallel": self.ranks} if self.ranks > 1 else {}),
            "weights": self.weights, "weights_total": sum(self.weights.values()),
            "estimated": [ESTIMATED] if self.estimated else [],
            "kv_cache": self.kv_cache, "activations": self.activations, "total": self.total,
            "fp16": {
                "weights": self.weights_16bit, "kv_cache": self.kv_cache_16bit,
                "activations": self.activations_16bit, "total": self.total_16bit,
            },
        }  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """How a model will run, as far as it affects memory."""

    device: DeviceKind = "cpu"
    dtype: str = "float32"
    kv_cache: str = "float32"
    mode: str | None = None
    ranks: int = 1
    """Of tensor parallelism, as vLLM splits models."""

    @classmethod
    def of(
        cls, device: DeviceLike, dtype: str | None, kv_cache: str | None, mode: str | None, ranks: int = 1
    ) -> Setup:  # fmt: skip
        """From user arguments; None has the same meaning as in ``load``.

        Raises:
            ArgumentError: the device or dtype is unknown.
        """
        kind = device_kind(device)
        dtype = dtype or ("float32" if kind == "cpu" else "float16")
        if dtype not in FLOAT_BYTES:
            raise ArgumentError("dtype", expected=" or ".join(FLOAT_BYTES), found=dtype)
        kv_cache = kv_cache or dtype
        if kv_cache not in CACHE_BYTES:
            raise ArgumentError("kv_cache", expected=" or ".join(CACHE_BYTES), found=kv_cache)
        return cls(kind, dtype, kv_cache, mode, ranks)


@dataclass(frozen=True)
class Predictor:
    """A model's footprint for any context and batch; created by ``open_predictor``."""

    where: Path
    architecture: Architecture
    setup: Setup
    weights: Counter[str]
    quantized: bool
    """Whether weights are int8, or will be."""
    estimated: bool = False
    """Whether they are those that ``convert_checkpoint`` would produce."""

    @property
    def mapped(self) -> bool:
        """Whether weights stay in the file, where unread parts take no memory."""
        return self.quantized and self.setup.device == "cpu" and self.setup.ranks == 1

    @property
    def config(self) -> DecoderConfig:
        return self.architecture.config

    def at(
        self, context: int | None = None, batch: int = 1, *, prompt: int | None = None
    ) -> Footprint:
        """The footprint of ``batch`` sequences of ``context`` positions (None: the model's maximum), of which ``prompt`` are the
        prompt (None: all).

        Raises:
            ArgumentError: the batch is below 1.
            GenerationError: the context is longer than the model's.
        """
        config, setup = self.config, self.setup
        context = config.max_positions if context is None else context
        if batch < 1:
            raise ArgumentError("batch", expected="1 or more", found=batch)
        if not 1 <= context <= config.max_positions:
            raise GenerationError("context does not fit the model", file=self.where,
                                  expected=f"1 to {config.max_positions} positions", found=context)  # fmt: skip
        prompt = context if prompt is None else min(prompt, context)

        def activations(item: int, narrow: bool, quantized: bool) -> int:
            return activation_bytes(
                config, device=setup.device, context=context, batch=batch, prompt=prompt, item=item,
                narrow_cache=narrow, quantized=quantized, mode=setup.mode,
            )  # fmt: skip

        weights = self.weights - self._unread(context * batch)
        return Footprint(
            context, batch, setup.device, setup.dtype, setup.kv_cache,
            {kind: size for kind, size in weights.most_common() if size}, self.estimated,
            kv_cache_bytes(config, context, batch, setup.kv_cache),
            activations(FLOAT_BYTES[setup.dtype], setup.kv_cache != setup.dtype, self.quantized),
            2 * parameter_count(self.architecture),
            kv_cache_bytes(config, context, batch, "float16"), activations(2, False, False), setup.ranks,
        )  # fmt: skip

    def largest_context(self, memory: int, batch: int) -> int:
        """Largest number of positions that fit with ``batch`` sequences; 0: none."""
        return _largest(
            self.config.max_positions, lambda context: self.at(context, batch).total <= memory
        )

    def largest_batch(self, memory: int, context: int | None) -> int:
        """Largest number of sequences that fit at that context, at most ``MOST_BATCH``; 0: none."""
        return _largest(MOST_BATCH, lambda batch: self.at(context, batch).total <= memory)

    def _unread(self, tokens: int) -> Counter[str]:
        unread: Counter[str] = Counter()
        for module in self.architecture.modules if self.mapped else ():
            tied = self.config.tied and module.role == "embed"
            if module.kind == "embedding" and not tied and self.weights["embeddings"]:
                nbytes = 2 * module.shape[0] * module.shape[1]
                unread["embeddings"] += unread_rows(module, tokens, nbytes)
        return unread


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 0 to ``most`` that fits, given that all smaller ones do."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def open_predictor(
    path: str | os.PathLike[str],
    *,
    device: DeviceLike = "cpu",
    dtype: str | None = None,
    kv_cache: str | None = None,
    mode: str | None = None,
    convert: bool = True,
    tensor_parallel: int = 1,
) -> Predictor:
    """Read the headers for a prediction; the arguments are those of ``predict_footprint``."""
    setup = Setup.of(device, dtype, kv_cache, mode, tensor_parallel)
    config_file = lone_config(Path(path))
    if config_file is None:
        return predictor_of(open_model(path, headers_only=True), setup, convert=convert)
    architecture = read_architecture(read_json(config_file), (), config_file)
    return _as_converted(config_file, architecture, setup)


def predictor_of(opened: OpenedModel, setup: Setup, *, convert: bool) -> Predictor:
    """The predictor of a model whose headers have already been read."""
    architecture = opened.architecture
    if opened.converted is not None:
        if setup.ranks > 1:
            return _split(opened.folder, architecture, setup, opened.converted)
        weights = converted_weights(opened.converted, architecture)
        if setup.device == "cuda":  # each file is one buffer there
            files = {t.file: t.file.size() for t in opened.checkpoint.tensors.values()}
            weights["headers and padding"] = sum(files.values()) - weights.total()
        return Predictor(opened.folder, architecture, setup, weights, quantized=True)
    for module in architecture.modules:  # else it would be the config's footprint, and nobody's
        find_tensor(opened.checkpoint, module)
    if convert:
        return _as_converted(opened.folder, architecture, setup)
    architecture = rank_architecture(architecture, setup.ranks)
    weights = loaded_weights(architecture, FLOAT_BYTES[setup.dtype])
    return Predictor(opened.folder, architecture, setup, weights, quantized=False)


def _as_converted(where: Path, architecture: Architecture, setup: Setup) -> Predictor:
    """The model as ``convert_checkpoint`` would convert it."""
    if setup.ranks > 1:
        return _split(where, architecture, setup, None)
    weights = estimated_weights(architecture)
    return Predictor(where, architecture, setup, weights, quantized=True, estimated=True)


def _split(
    where: Path, whole: Architecture, setup: Setup, converted: ConvertedFolder | None
) -> Predictor:
    """One rank of tensor parallelism."""
    rank = rank_architecture(whole, setup.ranks)
    weights = rank_weights(whole, rank, FLOAT_BYTES[setup.dtype], converted)
    return Predictor(where, rank, setup, weights, quantized=True, estimated=converted is None)


def lone_config(path: Path) -> Path | None:
    """A config without weights: the file itself, or the one in a folder."""
    if path.suffix == ".json" and path.is_file():
        return path
    config_file = path / CONFIG_FILE
    if not config_file.is_file():
        return None
    names = [entry.name for entry in path.iterdir()]
    whole = any(is_weights_name(n) or n == MANIFEST_FILE or n.endswith(".index.json") for n in names)  # fmt: skip
    return None if whole else config_file


def predict_footprint(
    path: str | os.PathLike[str],
    *,
    context: int | None = None,
    batch: int = 1,
    device: DeviceLike = "cpu",
    dtype: str | None = None,
    kv_cache: str | None = None,
    mode: str | None = None,
    convert: bool = True,
    tensor_parallel: int = 1,
) -> Footprint:
    """Predict the memory that a model needs, from headers alone; reads no weights, and does not download those of a source.

    Args:
        path: a converted folder, a source, a hub id of either (``org/name`` or ``org/name@revision``), a ``config.json``, or a
            folder with only that.
        context: positions per sequence, prompt and new tokens; None: the model's maximum.
        batch: number of sequences.
        device: as in ``load``; it need not exist on this machine.
        dtype: dtype of activations; None: float32 on a CPU, float16 on a GPU.
        kv_cache: dtype of the KV cache, or ``"int8"``; None: the dtype of activations.
        mode: as in ``load``.
        convert: whether to predict for a source as ``convert_checkpoint`` would convert it, instead of as loaded.
        tensor_parallel: number of ranks that a model is split over, as vLLM splits it; the prediction is for one of them.

    Raises:
        NotFoundError: there is no such folder.
        HubError: it cannot be downloaded.
        ArgumentError: an unknown device or dtype; a batch below 1; a size of the model that the number of ranks does not divide.
        GenerationError: a context longer than the model's.
        AlreadyQuantizedError: a source that another tool has quantized.
        MissingTensorError, ShapeError: a source whose tensors are not what its config implies.
        UnsupportedModelError: a family, or a feature of its config, that the runtime does not know, or not on that device.
    """
    predictor = open_predictor(
        path, device=device, dtype=dtype, kv_cache=kv_cache, mode=mode, convert=convert,
        tensor_parallel=tensor_parallel,
    )  # fmt: skip
    return predictor.at(context, batch)


def kv_cache_bytes(config: DecoderConfig, context: int, batch: int, dtype: str) -> int:
    """Size of keys and values of all layers, heads and positions, and of recurrent states; of latents, if attention has them."""
    scale = SCALE_BYTES if dtype == "int8" else 0
    per_position = 0
    for layer in filter(config.has_own_keys, range(config.num_layers)):
        heads = config.heads_of(layer)
        widths = (heads.size,) * (2 * heads.count)
        if config.latent is not None:
            widths = config.latent.widths
        per_position += sum(width * CACHE_BYTES[dtype] + scale for width in widths)
    return context * batch * per_position + config.state_bytes(batch)
