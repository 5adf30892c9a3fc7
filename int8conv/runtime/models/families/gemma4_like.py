"""Shared by both forms of Gemma 4: larger heads in layers without a window, whose values may be their keys; shared keys."""

from __future__ import annotations

from typing import Any, Final

from ..config import ACTIVATIONS, DecoderConfig, Rope
from ..raw_config import RawConfig
from ..rope import read_layer_ropes
from .layer_heads import read_layer_heads
from .shared_keys import read_count, read_key_sources
from .standard import read_decoder, read_windows

_ROPES = Rope(1e6, "proportional", rotary_fraction=0.25), Rope(1e4)
SCALED: Final = {"layer_scale": "model.layers.{}.layer_scalar"}


def read_gemma4_like(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:  # fields of it
    layers, inner = raw.integer("num_hidden_layers"), raw.integer("intermediate_size")
    windows = (
        *(read_windows(raw, 512, every=6) or (None,) * layers)[:-1],
        None,
    )  # none in the last
    same, bias = raw.flag("attention_k_eq_v", False), raw.flag("attention_bias", False)
    shared = min(read_count(raw, "num_kv_shared_layers"), layers)
    seen = raw.values.get("use_bidirectional_attention") == "vision"
    raw.fixed("use_bidirectional_attention", "vision" if seen else None)  # never of text
    rope, local_rope = read_layer_ropes(raw, (1e6, 1e4)) or _ROPES
    return read_decoder(
        raw, model_type, tied=raw.flag("tie_word_embeddings", True), head_dim=raw.integer("head_dim", 256), norms="around",
        activation=raw.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"), query_norm="head", value_norm=True,
        embedding_scale=raw.integer("hidden_size") ** 0.5, attention_scale=1.0, windows=windows, layer_scaled=True,
        logit_softcap=raw.optional_number("final_logit_softcapping"), rope=rope, local_rope=local_rope, qkv_bias=bias,
        heads=read_layer_heads(raw, windows, more=same), out_bias=bias,
        keys_as_values=tuple(same and size is None for size in windows), ffn_sizes=(inner,) * (layers - shared) + (2 * inner,) * shared if raw.flag("use_double_wide_mlp", False) else (),
        key_sources=read_key_sources(raw, windows, shared), **more,
    )  # fmt: skip
