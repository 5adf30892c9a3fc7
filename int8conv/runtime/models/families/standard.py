"""Shared by most families: config keys, and the names of Llama's modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig
from ..rope import context, read_rope

NAMES: Final[Mapping[str, str]] = {
    "embed": "model.embed_tokens",
    "attn_norm": "model.layers.{}.input_layernorm",
    "q": "model.layers.{}.self_attn.q_proj",
    "k": "model.layers.{}.self_attn.k_proj",
    "v": "model.layers.{}.self_attn.v_proj",
    "o": "model.layers.{}.self_attn.o_proj",
    "mlp_norm": "model.layers.{}.post_attention_layernorm",
    "gate": "model.layers.{}.mlp.gate_proj",
    "up": "model.layers.{}.mlp.up_proj",
    "down": "model.layers.{}.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
HEAD_NORMS: Final = {
    "q_norm": "model.layers.{}.self_attn.q_norm",
    "k_norm": "model.layers.{}.self_attn.k_norm",
}
POST_NORMS: Final = {
    "attn_post_norm": "model.layers.{}.post_attention_layernorm",
    "mlp_post_norm": "model.layers.{}.post_feedforward_layernorm",
}
EXPERT_NAMES: Final = {
    "router": "model.layers.{}.mlp.gate",
    "expert_gate": "model.layers.{}.mlp.experts.{}.gate_proj",
    "expert_up": "model.layers.{}.mlp.experts.{}.up_proj",
    "expert_down": "model.layers.{}.mlp.experts.{}.down_proj",
}
_STACKED: Final[Mapping[str, tuple[str, ...]]] = {
    "gate_up_proj": ("gate", "up"),
    "gate_proj": ("gate",),
    "up_proj": ("up",),
    "down_proj": ("down",),
    "w1": ("gate",),
    "w2": ("down",),
    "w3": ("up",),
}
PLAIN_NAMES: Final = {role: name for role, name in NAMES.items() if role != "gate"}
"""Of a decoder whose FFN has no gate."""
COMPUTED: Final = (".rotary_emb.inv_freq",)
"""Tensors of old checkpoints that are not needed."""


def read_decoder(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:  # fields of it
    """Read a decoder with RMSNorm, rotary positions and a gated FFN from the usual keys.

    Args:
        raw: the config.
        model_type: the family.
        more: fields that differ; their keys are not read.
    """
    hidden = raw.integer("hidden_size")
    heads = raw.integer("num_attention_heads")
    fields: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": raw.integer("vocab_size"),
        "hidden_size": hidden,
        "num_heads": heads,
        "embedding_size": hidden,
        "gated": True,
        "norm": "rms",
    }
    readers: dict[str, Any] = {
        "num_layers": lambda: raw.integer("num_hidden_layers"),
        "intermediate_size": lambda: raw.integer("intermediate_size"),
        "num_kv_heads": lambda: raw.integer("num_key_value_heads", heads),
        "head_dim": lambda: (
            raw.optional_integer("head_dim")
            or raw.size_per_head("hidden_size", "num_attention_heads")
        ),
        "norm_eps": lambda: raw.number("rms_norm_eps", 1e-6),
        "activation": lambda: raw.choice("hidden_act", ACTIVATIONS, "silu"),
        "rope": lambda: read_rope(raw),
        "tied": lambda: raw.flag("tie_word_embeddings", False),
    }
    fields |= {name: read() for name, read in readers.items() if name not in more}
    fields |= more
    if "max_positions" not in fields:
        positions = raw.integer("max_position_embeddings", 2048)
        rope = fields["rope"]
        fields["max_positions"] = positions if rope is None else context(rope, positions)
    return DecoderConfig(**fields)


def expert_stacks(*parents: str) -> dict[str, tuple[str, ...]]:
    """A family's ``stacks`` below each of these modules of a layer, as named by transformers 5 and MLX."""
    return {
        f"model.layers.{{}}.{parent}.{name}": roles
        for parent in parents
        for name, roles in _STACKED.items()
    }


def read_windows(
    raw: RawConfig, default: int | None = None, every: int | None = None
) -> tuple[int | None, ...]:
    """The window of each layer, by ``layer_types``; without them every layer has ``sliding_window``, or all but each ``every``-th."""
    layers = raw.integer("num_hidden_layers")
    size = raw.optional_integer("sliding_window") or default
    types = raw.strings("layer_types")
    if types is None:
        if size is None:
            return ()
        return tuple(None if every and (i + 1) % every == 0 else size for i in range(layers))
    kinds = {"full_attention": None, "sliding_attention": size}
    for kind in types:
        if kind not in kinds or (kind == "sliding_attention" and size is None):
            raise raw.unsupported("layer_types", kind, " or ".join(kinds))
    return tuple(kinds[kind] for kind in types) if any(kinds[kind] for kind in types) else ()
