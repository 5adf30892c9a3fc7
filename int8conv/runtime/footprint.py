"""Memory that a model needs, from headers alone: weights by kind, KV cache, activations, against the same in 16 bits."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from ..errors import ArgumentError, GenerationError
from ..formats.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from ..formats.converted import ConvertedFolder, is_converted, open_converted
from ..formats.hub import resolve, resolve_headers
from .architecture import Architecture, Kind, read_architecture
from .config import DecoderConfig

DTYPE_BYTES: Final = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Footprint:
    """Predicted memory in bytes."""

    context: int
    batch: int
    dtype: str
    """Of activations and cache."""
    weights: dict[str, int]
    """By kind."""
    kv_cache: int
    activations: int
    """Peak of one pass over a prompt as long as the context, the widest moment of the decoder."""
    weights_16bit: int
    """The same parameters at two bytes each."""

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.kv_cache + self.activations

    @property
    def total_16bit(self) -> int:
        return self.weights_16bit + self.kv_cache + self.activations

    def to_json(self) -> dict[str, Any]:
        """Every figure, sums included."""
        return {
            "context": self.context, "batch": self.batch, "dtype": self.dtype,
            "weights": self.weights, "weights_total": sum(self.weights.values()),
            "kv_cache": self.kv_cache, "activations": self.activations, "total": self.total,
            "fp16": {"weights": self.weights_16bit, "total": self.total_16bit},
        }  # fmt: skip


def predict_footprint(
    path: str | os.PathLike[str],
    *,
    context: int | None = None,
    batch: int = 1,
    dtype: str = "float16",
) -> Footprint:
    """Predict the memory of a converted folder or a source checkpoint; reads no weights, and downloads none of a source.

    Args:
        path: the folder, or its id on the hub: ``org/name`` or ``org/name@revision``.
        context: positions in the KV cache, a sequence; None: as many as the model has.
        batch: sequences.
        dtype: of activations and cache.

    Raises:
        NotFoundError: no such folder.
        HubError: it cannot be downloaded.
        ArgumentError: a batch or dtype that cannot be.
        GenerationError: a context longer than the model's.
    """
    if dtype not in DTYPE_BYTES:
        raise ArgumentError("dtype", expected=" or ".join(DTYPE_BYTES), found=dtype)
    source = resolve_headers(path)
    folder = source.folder
    converted = open_converted(resolve(path).folder) if is_converted(folder) else None
    checkpoint = (
        converted.checkpoint if converted else open_checkpoint(folder, source.remote, source.only)
    )
    architecture = read_architecture(checkpoint.config, checkpoint.tensors, folder / CONFIG_FILE)
    config = architecture.config
    context = config.max_positions if context is None else context
    if batch < 1:
        raise ArgumentError("batch", expected="1 or more", found=batch)
    if not 1 <= context <= config.max_positions:
        raise GenerationError("context does not fit the model", file=folder,
                              expected=f"1 to {config.max_positions} positions", found=context)  # fmt: skip
    weights = weights_by_kind(checkpoint, converted, architecture)
    return Footprint(
        context,
        batch,
        dtype,
        weights,
        kv_cache_bytes(config, context, batch, dtype),
        activation_bytes(config, context * batch, batch, dtype),
        2 * parameter_count(checkpoint, converted),
    )


def weights_by_kind(
    checkpoint: Checkpoint, converted: ConvertedFolder | None, architecture: Architecture
) -> dict[str, int]:
    """Bytes of the tensors by what they are."""
    module_kind: dict[str, Kind] = {m.path: m.kind for m in architecture.modules}
    sizes: Counter[str] = Counter()
    linears = converted.linears if converted else {}
    for linear in linears.values():
        sizes["int8 weights"] += linear.weight.nbytes
        sizes["row scales"] += linear.scale.nbytes
        for part in (linear.outlier_index, linear.outlier_weight):
            sizes["outlier columns"] += part.nbytes if part else 0
        sizes["biases"] += linear.bias.nbytes if linear.bias else 0
    for tensor in converted.others() if converted else checkpoint.tensors.values():
        path, _, suffix = tensor.name.rpartition(".")
        kind = "biases" if suffix == "bias" else _LABELS.get(module_kind.get(path), "other")
        sizes[kind] += tensor.nbytes
    return {kind: size for kind, size in sizes.most_common() if size}


_LABELS: Final[dict[Kind | None, str]] = {
    "embedding": "embeddings",
    "norm": "norms",
    "attention": "attention (16/32 bit)",
    "ffn": "FFN (16/32 bit)",
    "projection": "projections",
    "head": "head",
}


def parameter_count(checkpoint: Checkpoint, converted: ConvertedFolder | None) -> int:
    """Elements of the model as it was before conversion."""
    if converted is None:
        return sum(prod(t.shape) for t in checkpoint.tensors.values())
    linears = converted.linears.values()
    inside = sum(prod(x.weight.shape) + (x.out_features if x.bias else 0) for x in linears)
    return inside + sum(prod(t.shape) for t in converted.others())


def kv_cache_bytes(config: DecoderConfig, context: int, batch: int, dtype: str) -> int:
    """Keys and values of every layer, head and position."""
    per_position = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return per_position * context * batch * DTYPE_BYTES[dtype]


def activation_bytes(config: DecoderConfig, tokens: int, batch: int, dtype: str) -> int:
    """The widest moment of a pass over ``tokens``, with the residual beside it, and the last positions' logits.

    That is either attention (norm, queries, keys, values and their result) or the FFN (norm, wide outputs and product).
    """
    c = config
    heads = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    wide = (3 if c.gated else 2) * c.intermediate_size
    per_token = 2 * c.hidden_size + max(heads, wide)
    return per_token * tokens * DTYPE_BYTES[dtype] + batch * c.vocab_size * 4
