"""Shared by Gemma 3n and Gemma 4: their last layers attend to keys and values of earlier ones; embeddings of tokens for each layer."""

from __future__ import annotations

from typing import Final

from ....errors import JsonFileError
from ..raw_config import RawConfig
from ..streams import LayerInput
from .standard import HEAD_NORMS, NAMES, POST_NORMS

SHARED_NAMES: Final = {
    **NAMES, **POST_NORMS, **HEAD_NORMS,
    "mlp_norm": "model.layers.{}.pre_feedforward_layernorm",
    "input_embed": "model.embed_tokens_per_layer",
    "input_project": "model.per_layer_model_projection",
    "input_norm": "model.per_layer_projection_norm",
    "input_gate": "model.layers.{}.per_layer_input_gate",
    "input_down": "model.layers.{}.per_layer_projection",
    "input_post_norm": "model.layers.{}.post_per_layer_input_norm",
}  # fmt: skip


def read_key_sources(raw: RawConfig, windows: tuple[int | None, ...], shared: int) -> tuple[int, ...]:  # fmt: skip
    """The last ``shared`` layers attend to keys of the last layer before them that is of their kind, with a window or without."""
    layers = len(windows)
    if not shared:
        return ()
    own = range(layers - shared)
    kinds = {window is None: layer for layer, window in enumerate(windows) if layer in own}
    for window in windows[layers - shared :]:
        if (window is None) not in kinds:
            raise raw.unsupported("num_kv_shared_layers", shared, "layers of each kind before them")
    return (*own, *(kinds[window is None] for window in windows[layers - shared :]))


def read_count(raw: RawConfig, key: str, default: int = 0) -> int:
    """A number of layers or channels that may be 0, and none of which are more than the layers."""
    value = raw.values.get(key)
    if value == 0 and type(value) is int:
        raw.ignore(key)
        return 0
    return default if value is None else raw.integer(key)


def read_layer_input(raw: RawConfig) -> LayerInput | None:
    """The embeddings for each layer; None if their size is 0."""
    size, vocab = read_count(raw, "hidden_size_per_layer_input", 256), raw.integer("vocab_size_per_layer_input", 262144)  # fmt: skip
    return LayerInput(size, vocab) if size else None


def read_list(raw: RawConfig, key: str, default: list[float]) -> list[float]:
    """A list of numbers, one for each layer."""
    raw.ignore(key)
    value = raw.values.get(key, default)
    if not isinstance(value, list) or not all(type(entry) in (int, float) for entry in value):
        raise JsonFileError(f"config key '{key}'", file=raw.file, expected="a list of numbers",
                            found=repr(value))  # fmt: skip
    return value
