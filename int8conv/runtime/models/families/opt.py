"""OPT (arXiv:2205.01068): LayerNorm, learned positions from row 2 on, biases, ReLU FFN; 350m has norms after the sums."""

from __future__ import annotations

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig
from .family import Family


def read_config(raw: RawConfig) -> DecoderConfig:
    hidden, heads = raw.integer("hidden_size"), raw.integer("num_attention_heads")
    if hidden % heads:
        raise raw.unsupported("num_attention_heads", heads, f"a divisor of hidden_size {hidden}")
    bias = raw.flag("enable_bias", True)
    pre_norm = raw.flag("do_layer_norm_before", True)
    if not raw.flag("layer_norm_elementwise_affine", True):
        raise raw.unsupported("layer_norm_elementwise_affine", False, "true")
    return DecoderConfig(
        model_type="opt",
        vocab_size=raw.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=raw.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=raw.integer("ffn_dim"),
        max_positions=raw.integer("max_position_embeddings", 2048),
        norm="layer",
        norm_eps=1e-5,
        activation=raw.choice("activation_function", ACTIVATIONS, "relu"),
        gated=False,
        rope=None,
        embedding_size=raw.integer("word_embed_proj_dim", hidden),
        tied=raw.flag("tie_word_embeddings", True),
        position_offset=2, norms="before" if pre_norm else "after sum", qkv_bias=bias, out_bias=bias, mlp_bias=bias,
        final_norm=pre_norm and not raw.flag("_remove_final_layer_norm", False),
    )  # fmt: skip


FAMILY = Family(
    model_type="opt",
    base_prefix="model.",
    names={
        "embed": "model.decoder.embed_tokens",
        "positions": "model.decoder.embed_positions",
        "project_in": "model.decoder.project_in",
        "attn_norm": "model.decoder.layers.{}.self_attn_layer_norm",
        "q": "model.decoder.layers.{}.self_attn.q_proj",
        "k": "model.decoder.layers.{}.self_attn.k_proj",
        "v": "model.decoder.layers.{}.self_attn.v_proj",
        "o": "model.decoder.layers.{}.self_attn.out_proj",
        "mlp_norm": "model.decoder.layers.{}.final_layer_norm",
        "up": "model.decoder.layers.{}.fc1",
        "down": "model.decoder.layers.{}.fc2",
        "final_norm": "model.decoder.final_layer_norm",
        "project_out": "model.decoder.project_out",
        "head": "lm_head",
    },
    read_config=read_config,
)
