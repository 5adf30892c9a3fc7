"""Bamba: Mamba 2 in most layers, attention in the others; half of each head is rotated."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .mamba import mamba_names, read_mamba
from .standard import COMPUTED, NAMES, read_decoder


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore("num_logits_to_keep", "z_loss_coefficient", "layers_block_type")
    attention, bias = set(raw.integers("attn_layer_indices")), raw.flag("attention_bias", False)
    layers = range(raw.integer("num_hidden_layers"))
    return read_decoder(
        raw, "bamba", rope=read_rope(raw, 0.5), norm_eps=raw.number("rms_norm_eps", 1e-5),
        qkv_bias=bias, out_bias=bias, mlp_bias=raw.flag("mlp_bias", False), recurrence=read_mamba(raw),
        recurrent_layers=tuple(layer not in attention for layer in layers),
    )  # fmt: skip


HYBRID_NAMES = {
    **NAMES,
    **mamba_names("model.layers.{}.mamba."),
    "mlp_norm": "model.layers.{}.pre_ff_layernorm",
    **{role: f"model.layers.{{}}.feed_forward.{role}_proj" for role in ("gate", "up", "down")},
    "final_norm": "model.final_layernorm",
}
FAMILY = Family("bamba", "model.", HYBRID_NAMES, read_config, COMPUTED)
