"""GPT-Neo: GPT-2 with separate linears, scores that are not scaled, and a window in every other layer."""

from __future__ import annotations

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig
from .family import Family


def _windows(raw: RawConfig, layers: int) -> tuple[int | None, ...]:
    kinds, size = raw.strings("attention_layers"), raw.integer("window_size", 256)
    raw.ignore("attention_types")
    kinds = kinds or ["local" if layer % 2 else "global" for layer in range(layers)]
    for kind in kinds:
        if kind not in ("local", "global"):
            raise raw.unsupported("attention_layers", kind, "local or global")
    return tuple(size if kind == "local" else None for kind in kinds)


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore(
        "embed_dropout", "summary_activation", "summary_first_dropout", "gradient_checkpointing"
    )
    raw.ignore("summary_proj_to_labels", "summary_type", "summary_use_proj", "resid_dropout")
    hidden, heads, layers = (raw.integer(k) for k in ("hidden_size", "num_heads", "num_layers"))
    return DecoderConfig(
        model_type="gpt_neo", vocab_size=raw.integer("vocab_size"), hidden_size=hidden,
        num_layers=layers, num_heads=heads, num_kv_heads=heads,
        head_dim=raw.size_per_head("hidden_size", "num_heads"),
        intermediate_size=raw.integer("intermediate_size", 4 * hidden),
        max_positions=raw.integer("max_position_embeddings", 2048), norm="layer",
        norm_eps=raw.number("layer_norm_epsilon", 1e-5),
        activation=raw.choice("activation_function", ACTIVATIONS, "gelu_new"), gated=False,
        rope=None, embedding_size=hidden, tied=raw.flag("tie_word_embeddings", True),
        out_bias=True, mlp_bias=True, attention_scale=1.0, windows=_windows(raw, layers),
    )  # fmt: skip


_LAYER = "transformer.h.{}."
FAMILY = Family(
    "gpt_neo", "transformer.",
    {
        "embed": "transformer.wte", "positions": "transformer.wpe", "attn_norm": f"{_LAYER}ln_1",
        **{role: f"{_LAYER}attn.attention.{role}_proj" for role in "qkv"},
        "o": f"{_LAYER}attn.attention.out_proj", "mlp_norm": f"{_LAYER}ln_2",
        "up": f"{_LAYER}mlp.c_fc", "down": f"{_LAYER}mlp.c_proj",
        "final_norm": "transformer.ln_f", "head": "lm_head",
    },
    read_config, (".attn.attention.bias", ".attn.attention.masked_bias"),
)  # fmt: skip
