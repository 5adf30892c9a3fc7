"""Gemma (arXiv:2403.08295): scaled embeddings, norms with 1 + weight. Gemma 2 (arXiv:2408.00118): norms around both
parts of a block, soft caps, a window in every other layer. Gemma 3 (arXiv:2503.19786): norms of heads, a separate rotary base
for layers with a window.
"""

from __future__ import annotations

from typing import Any

from ..config import ACTIVATIONS, DecoderConfig, Rope
from ..raw_config import RawConfig
from ..rope import read_layer_ropes, read_rope
from .family import Family
from .standard import COMPUTED, HEAD_NORMS, NAMES, POST_NORMS, read_decoder, read_windows

_AROUND = {**NAMES, **POST_NORMS, "mlp_norm": "model.layers.{}.pre_feedforward_layernorm"}


def _read(raw: RawConfig, model_type: str, activation: str, **more: Any) -> DecoderConfig:
    bias = raw.flag("attention_bias", False)
    raw.fixed("use_bidirectional_attention", False)
    return read_decoder(
        raw, model_type,
        head_dim=raw.integer("head_dim", 256), tied=raw.flag("tie_word_embeddings", True),
        activation=raw.choice(activation, ACTIVATIONS, "gelu_pytorch_tanh"), norm_offset=1.0,
        embedding_scale=raw.integer("hidden_size") ** 0.5, qkv_bias=bias, out_bias=bias, **more,
    )  # fmt: skip


def _around(raw: RawConfig, model_type: str, windows: tuple[int | None, ...], **more: Any) -> DecoderConfig:  # fmt: skip
    return _read(
        raw, model_type, "hidden_activation",
        norms="around", windows=windows,
        attention_scale=raw.number("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=raw.optional_number("attn_logit_softcapping"),
        logit_softcap=raw.optional_number("final_logit_softcapping"), **more,
    )  # fmt: skip


def read_gemma(raw: RawConfig) -> DecoderConfig:
    if (
        raw.values.get("hidden_activation") is None
    ):  # in the first release, "gelu" also meant its approximation
        exact = raw.values.get("hidden_act") in ("gelu", None)
        raw.ignore("hidden_act")
        if exact:
            return _read(raw, "gemma", "hidden_activation")
        return _read(raw, "gemma", "hidden_act")
    raw.ignore("hidden_act")
    return _read(raw, "gemma", "hidden_activation")


def read_gemma2(raw: RawConfig) -> DecoderConfig:
    windows = read_windows(raw, 4096)
    if raw.values.get("layer_types") is None:
        windows = tuple(None if layer % 2 else size for layer, size in enumerate(windows))
    raw.ignore("cache_implementation", "hidden_act")
    return _around(raw, "gemma2", windows)


def read_gemma3(raw: RawConfig) -> DecoderConfig:
    windows = read_windows(raw, 4096)
    if raw.values.get("layer_types") is None:
        pattern = raw.integer("sliding_window_pattern", 6)
        windows = tuple(size if (i + 1) % pattern else None for i, size in enumerate(windows))
    raw.ignore("sliding_window_pattern", "cache_implementation")
    rope, local = _ropes(raw)
    return _around(raw, "gemma3_text", windows, query_norm="head", rope=rope, local_rope=local)


def _ropes(raw: RawConfig) -> tuple[Rope, Rope]:
    """Rotary embeddings of global layers and of layers with a window."""
    if (ropes := read_layer_ropes(raw, (1e6, 1e4))) is not None:
        return ropes
    return read_rope(raw, theta=1e6), Rope(raw.number("rope_local_base_freq", 1e4))


GEMMA = Family("gemma", "model.", NAMES, read_gemma, COMPUTED)
GEMMA2 = Family("gemma2", "model.", _AROUND, read_gemma2, COMPUTED)
GEMMA3 = Family("gemma3_text", "model.", {**_AROUND, **HEAD_NORMS}, read_gemma3, COMPUTED)
