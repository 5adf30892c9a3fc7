"""Gemma 3n's text part: shared keys, embeddings for each layer, several residual streams (AltUp), low-rank products beside attention
(LAuReL), and in the first layers FFNs with mostly empty gates.
"""

from __future__ import annotations

from ....errors import JsonFileError
from ..config import ACTIVATIONS, DecoderConfig, Rope
from ..raw_config import MOST_SIZE, RawConfig
from ..rope import read_layer_ropes, read_rope
from ..streams import AltUp
from .family import Family
from .shared_keys import SHARED_NAMES, read_count, read_key_sources, read_layer_input, read_list
from .standard import COMPUTED, read_decoder, read_windows

_LAYER = "model.layers.{}."


def read_config(raw: RawConfig) -> DecoderConfig:
    layers, bias = raw.integer("num_hidden_layers"), raw.flag("attention_bias", False)
    windows = read_windows(raw, 512, every=5) or (None,) * layers
    shared = min(read_count(raw, "num_kv_shared_layers", 15), layers)
    sizes = [raw.integer("intermediate_size")] * layers if type(raw.values.get("intermediate_size")) is int else raw.integers("intermediate_size")  # fmt: skip
    gates = read_list(raw, "activation_sparsity_pattern", [0.95] * 10 + [0.0] * (layers - 10) if layers > 10 else [0.0] * layers)  # fmt: skip
    if (
        not all(0 <= fraction < 1 for fraction in gates)
        or not sizes
        or not all(0 < size <= MOST_SIZE for size in sizes)
    ):
        raise JsonFileError("config key 'activation_sparsity_pattern' or 'intermediate_size'", file=raw.file, found=f"{gates}, {sizes}")  # fmt: skip
    ropes = read_layer_ropes(raw, (1e6, 1e4)) or (read_rope(raw, theta=1e6), Rope(raw.number("rope_local_base_freq", 1e4)))  # fmt: skip
    raw.ignore("rope_local_base_freq", "altup_coef_clip", "altup_lr_multiplier", "query_pre_attn_scalar")  # fmt: skip
    streams = raw.integer("altup_num_inputs", 4)
    active = read_count(raw, "altup_active_idx")
    if active >= streams or streams > 64:
        raise raw.unsupported("altup_num_inputs", streams, "more than altup_active_idx, at most 64")
    altup = AltUp(streams, active, raw.flag("altup_correct_scale", True), raw.integer("laurel_rank", 64))  # fmt: skip
    return read_decoder(
        raw, "gemma3n_text", tied=raw.flag("tie_word_embeddings", True), head_dim=raw.integer("head_dim", 256), norms="around",
        activation=raw.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"), query_norm="head", value_norm=True,
        embedding_scale=raw.integer("hidden_size") ** 0.5, attention_scale=1.0, windows=windows, rope=ropes[0], local_rope=ropes[1],
        logit_softcap=raw.optional_number("final_logit_softcapping"), qkv_bias=bias, out_bias=bias, intermediate_size=max(sizes),
        ffn_sizes=tuple(sizes), sparse_gates=tuple(gates), key_sources=read_key_sources(raw, windows, shared),
        layer_input=read_layer_input(raw), altup=altup,
    )  # fmt: skip


_ALTUP = {
    "norm": "router_norm", "router": "modality_router", "prediction": "prediction_coefs", "correction": "correction_coefs",
    "scale": "correct_output_scale",
}  # fmt: skip
_LAUREL = {"left": "linear_left", "right": "linear_right", "norm": "post_laurel_norm"}
_NAMES = {
    **SHARED_NAMES,
    **{f"altup_{role}": f"{_LAYER}altup.{name}" for role, name in _ALTUP.items()},
    **{f"laurel_{role}": f"{_LAYER}laurel.{name}" for role, name in _LAUREL.items()},
    "altup_in": "model.altup_projections.{}",
    "altup_out": "model.altup_unembed_projections.{}",
}
FAMILY = Family("gemma3n_text", "model.", _NAMES, read_config, COMPUTED)
