"""StarCoder and SantaCoder (arXiv:2305.06161): GPT-2 with one key head."""

from __future__ import annotations

from ..config import ACTIVATIONS, DecoderConfig
from ..raw_config import RawConfig
from .family import Family


def read_config(raw: RawConfig) -> DecoderConfig:
    raw.ignore(
        "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "num_key_value_heads"
    )
    raw.ignore("inference_runner", "max_batch_size", "max_sequence_length", "pad_key_length")
    raw.ignore("pre_allocate_kv_cache", "validate_runner_input", "runner_max_sequence_length")
    raw.ignore("summary_activation", "summary_first_dropout", "summary_proj_to_labels")
    raw.ignore("summary_type", "summary_use_proj", "add_cross_attention")
    hidden, heads = raw.integer("n_embd"), raw.integer("n_head")
    one_key_head = raw.flag("multi_query", True)
    return DecoderConfig(
        model_type="gpt_bigcode",
        vocab_size=raw.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=raw.integer("n_layer"),
        num_heads=heads,
        num_kv_heads=1 if one_key_head else heads,
        head_dim=raw.size_per_head("n_embd", "n_head"),
        intermediate_size=raw.integer("n_inner", 4 * hidden),
        max_positions=raw.integer("n_positions", 1024),
        norm="layer",
        norm_eps=raw.number("layer_norm_epsilon", 1e-5),
        activation=raw.choice("activation_function", ACTIVATIONS, "gelu_pytorch_tanh"),
        gated=False,
        rope=None,
        embedding_size=hidden,
        tied=raw.flag("tie_word_embeddings", True),
        qkv_bias=True, out_bias=True, mlp_bias=True,
        attention_scale=None if raw.flag("scale_attn_weights", True) else 1.0,
        fused_qkv="rows" if one_key_head else "heads",
    )  # fmt: skip


_LAYER = "transformer.h.{}."
FAMILY = Family(
    "gpt_bigcode", "transformer.",
    {
        "embed": "transformer.wte", "positions": "transformer.wpe",
        "attn_norm": f"{_LAYER}ln_1", "qkv": f"{_LAYER}attn.c_attn", "o": f"{_LAYER}attn.c_proj",
        "mlp_norm": f"{_LAYER}ln_2", "up": f"{_LAYER}mlp.c_fc", "down": f"{_LAYER}mlp.c_proj",
        "final_norm": "transformer.ln_f", "head": "lm_head",
    },
    read_config, (".attn.bias", ".attn.masked_bias"),
)  # fmt: skip
