"""GPT-2: learned positions, linears stored as ``[in, out]``."""

from __future__ import annotations

from ..config import DecoderConfig
from ..raw_config import RawConfig
from .family import Family
from .first_gpt import read_first_gpt


def read_gpt2(raw: RawConfig) -> DecoderConfig:
    raw.fixed("scale_attn_by_inverse_layer_idx", False)
    raw.fixed("add_cross_attention", False)
    scaled = raw.flag("scale_attn_weights", True)
    return read_first_gpt(
        raw, "gpt2", rope=None, tied=raw.flag("tie_word_embeddings", True), qkv_bias=True, out_bias=True,
        fused_qkv="rows", transposed=True, attention_scale=None if scaled else 1.0,
    )  # fmt: skip


FAMILY = Family(
    "gpt2",
    "transformer.",
    {
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "attn_norm": "transformer.h.{}.ln_1",
        "qkv": "transformer.h.{}.attn.c_attn",
        "o": "transformer.h.{}.attn.c_proj",
        "mlp_norm": "transformer.h.{}.ln_2",
        "up": "transformer.h.{}.mlp.c_fc",
        "down": "transformer.h.{}.mlp.c_proj",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    read_gpt2,
    (".attn.bias", ".attn.masked_bias"),
)
