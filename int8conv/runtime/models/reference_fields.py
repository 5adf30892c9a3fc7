"""Of each family, the keys of ``config.json`` that transformers 5.23.0 reads, and so may mean something.

Those are the fields of its configuration class that not every configuration has, the other names that it takes, and what
its model asks the configuration for. Made by ``python -m tests.runtime.models.make_reference_fields``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

VERSION: Final = "5.23.0"

_WORDS: Final = {
    "bloom": (
        "apply_residual_connection_post_layernorm attention_dropout bos_token_id "
        "classifier_dropout eos_token_id hidden_dropout hidden_size initializer_range "
        "layer_norm_epsilon n_embed n_head n_layer num_attention_heads num_hidden_layers "
        "num_labels output_attentions pad_token_id pretraining_tp slow_but_exact "
        "tie_word_embeddings use_cache vocab_size"
    ),
    "cohere": (
        "attention_bias attention_dropout bos_token_id eos_token_id head_dim hidden_act "
        "hidden_size initializer_range intermediate_size layer_norm_eps logit_scale "
        "max_position_embeddings num_attention_heads num_hidden_layers num_key_value_heads "
        "pad_token_id rope_parameters tie_word_embeddings use_cache use_qk_norm vocab_size"
    ),
    "falcon": (
        "activation alibi attention_dropout bias bos_token_id classifier_dropout eos_token_id "
        "ffn_hidden_size head_dim hidden_dropout hidden_size initializer_range layer_norm_epsilon "
        "max_position_embeddings multi_query n_embed new_decoder_architecture num_attention_heads "
        "num_hidden_layers num_kv_heads num_labels num_ln_in_parallel_attn output_attentions "
        "pad_token_id parallel_attn rope_parameters tie_word_embeddings use_cache vocab_size"
    ),
    "gemma": (
        "attention_bias attention_dropout bos_token_id eos_token_id head_dim hidden_act "
        "hidden_size initializer_range intermediate_size max_position_embeddings "
        "num_attention_heads num_hidden_layers num_key_value_heads pad_token_id rms_norm_eps "
        "rope_parameters tie_word_embeddings use_bidirectional_attention use_cache vocab_size"
    ),
    "gemma2": (
        "attention_bias attention_dropout attn_logit_softcapping bos_token_id eos_token_id "
        "final_logit_softcapping head_dim hidden_activation hidden_size initializer_range "
        "intermediate_size layer_types max_position_embeddings num_attention_heads "
        "num_hidden_layers num_key_value_heads pad_token_id query_pre_attn_scalar rms_norm_eps "
        "rope_parameters sliding_window tie_word_embeddings use_bidirectional_attention use_cache "
        "vocab_size"
    ),
    "gemma3_text": (
        "attention_bias attention_dropout attn_logit_softcapping bos_token_id eos_token_id "
        "final_logit_softcapping head_dim hidden_activation hidden_size image_token_id "
        "initializer_range intermediate_size layer_types max_position_embeddings "
        "mm_tokens_per_image num_attention_heads num_hidden_layers num_key_value_heads "
        "pad_token_id query_pre_attn_scalar rms_norm_eps rope_local_base_freq rope_parameters "
        "rope_scaling rope_theta sliding_window sliding_window_pattern text_config "
        "tie_word_embeddings use_bidirectional_attention use_cache vision_config vocab_size"
    ),
    "gpt2": (
        "activation_function add_cross_attention attn_pdrop bos_token_id classifier_dropout "
        "embd_pdrop eos_token_id hidden_dropout hidden_size initializer_range layer_norm_epsilon "
        "max_position_embeddings n_embd n_head n_inner n_layer n_positions num_attention_heads "
        "num_hidden_layers num_labels pad_token_id reorder_and_upcast_attn resid_pdrop "
        "scale_attn_by_inverse_layer_idx scale_attn_weights summary_activation "
        "summary_first_dropout summary_last_dropout summary_proj_to_labels summary_type "
        "summary_use_proj tie_word_embeddings use_cache vocab_size"
    ),
    "gpt_neox": (
        "attention_bias attention_dropout bos_token_id classifier_dropout eos_token_id head_dim "
        "hidden_act hidden_dropout hidden_size initializer_range intermediate_size is_decoder "
        "layer_norm_eps max_position_embeddings num_attention_heads num_hidden_layers num_labels "
        "pad_token_id rope_parameters rope_scaling rotary_emb_base rotary_pct tie_word_embeddings "
        "use_cache use_parallel_residual vocab_size"
    ),
    "gptj": (
        "activation_function attn_pdrop bos_token_id embd_pdrop eos_token_id hidden_size "
        "initializer_range layer_norm_epsilon max_position_embeddings n_embd n_head n_inner "
        "n_layer n_positions num_attention_heads num_hidden_layers num_labels output_attentions "
        "pad_token_id resid_pdrop rotary_dim tie_word_embeddings use_cache vocab_size"
    ),
    "granite": (
        "attention_bias attention_dropout attention_multiplier bos_token_id embedding_multiplier "
        "eos_token_id head_dim hidden_act hidden_size initializer_range intermediate_size "
        "logits_scaling max_position_embeddings mlp_bias num_attention_heads num_hidden_layers "
        "num_key_value_heads pad_token_id residual_multiplier rms_norm_eps rope_parameters "
        "tie_word_embeddings use_cache vocab_size"
    ),
    "llama": (
        "attention_bias attention_dropout bos_token_id eos_token_id head_dim hidden_act "
        "hidden_size initializer_range intermediate_size max_position_embeddings mlp_bias "
        "num_attention_heads num_hidden_layers num_key_value_heads pad_token_id pretraining_tp "
        "rms_norm_eps rope_parameters tie_word_embeddings use_cache vocab_size"
    ),
    "mistral": (
        "attention_dropout bos_token_id eos_token_id head_dim hidden_act hidden_size "
        "initializer_range intermediate_size max_position_embeddings num_attention_heads "
        "num_hidden_layers num_key_value_heads pad_token_id rms_norm_eps rope_parameters "
        "sliding_window tie_word_embeddings use_cache vocab_size"
    ),
    "mixtral": (
        "attention_dropout bos_token_id eos_token_id head_dim hidden_act hidden_size "
        "initializer_range intermediate_size max_position_embeddings num_attention_heads "
        "num_experts num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts "
        "output_router_logits pad_token_id rms_norm_eps rope_parameters router_aux_loss_coef "
        "router_jitter_noise sliding_window tie_word_embeddings use_cache vocab_size"
    ),
    "olmo2": (
        "attention_bias attention_dropout bos_token_id eos_token_id head_dim hidden_act "
        "hidden_size initializer_range intermediate_size max_position_embeddings "
        "num_attention_heads num_hidden_layers num_key_value_heads pad_token_id rms_norm_eps "
        "rope_parameters tie_word_embeddings use_cache vocab_size"
    ),
    "olmoe": (
        "attention_bias attention_dropout bos_token_id clip_qkv eos_token_id head_dim hidden_act "
        "hidden_size initializer_range intermediate_size max_position_embeddings norm_topk_prob "
        "num_attention_heads num_experts num_experts_per_tok num_hidden_layers "
        "num_key_value_heads num_local_experts output_router_logits pad_token_id rms_norm_eps "
        "rope_parameters router_aux_loss_coef sliding_window tie_word_embeddings use_cache "
        "vocab_size"
    ),
    "opt": (
        "activation_function attention_dropout bos_token_id do_layer_norm_before dropout "
        "enable_bias eos_token_id ffn_dim hidden_size init_std layer_norm_elementwise_affine "
        "layerdrop max_position_embeddings num_attention_heads num_hidden_layers num_labels "
        "pad_token_id tie_word_embeddings use_cache vocab_size word_embed_proj_dim"
    ),
    "phi": (
        "attention_dropout bos_token_id embd_pdrop eos_token_id head_dim hidden_act hidden_size "
        "initializer_range intermediate_size layer_norm_eps max_position_embeddings "
        "num_attention_heads num_hidden_layers num_key_value_heads pad_token_id "
        "partial_rotary_factor qk_layernorm resid_pdrop rope_parameters tie_word_embeddings "
        "use_cache vocab_size"
    ),
    "phi3": (
        "attention_dropout bos_token_id embd_pdrop eos_token_id head_dim hidden_act hidden_size "
        "initializer_range intermediate_size max_position_embeddings num_attention_heads "
        "num_hidden_layers num_key_value_heads original_max_position_embeddings pad_token_id "
        "partial_rotary_factor resid_pdrop rms_norm_eps rope_parameters rope_scaling rope_theta "
        "sliding_window tie_word_embeddings use_cache vocab_size"
    ),
    "qwen2": (
        "attention_dropout bos_token_id eos_token_id head_dim hidden_act hidden_size "
        "initializer_range intermediate_size layer_types max_position_embeddings "
        "max_window_layers num_attention_heads num_hidden_layers num_key_value_heads pad_token_id "
        "rms_norm_eps rope_parameters sliding_window tie_word_embeddings use_cache "
        "use_sliding_window vocab_size"
    ),
    "qwen2_moe": (
        "attention_dropout bos_token_id decoder_sparse_step eos_token_id head_dim hidden_act "
        "hidden_size initializer_range intermediate_size layer_types max_position_embeddings "
        "max_window_layers mlp_only_layers moe_intermediate_size norm_topk_prob "
        "num_attention_heads num_experts num_experts_per_tok num_hidden_layers "
        "num_key_value_heads output_router_logits pad_token_id qkv_bias rms_norm_eps "
        "rope_parameters router_aux_loss_coef shared_expert_intermediate_size sliding_window "
        "tie_word_embeddings use_cache use_sliding_window vocab_size"
    ),
    "qwen3": (
        "attention_bias attention_dropout bos_token_id eos_token_id head_dim hidden_act "
        "hidden_size initializer_range intermediate_size layer_types max_position_embeddings "
        "max_window_layers num_attention_heads num_hidden_layers num_key_value_heads pad_token_id "
        "rms_norm_eps rope_parameters sliding_window tie_word_embeddings use_cache "
        "use_sliding_window vocab_size"
    ),
    "qwen3_moe": (
        "attention_bias attention_dropout bos_token_id decoder_sparse_step eos_token_id head_dim "
        "hidden_act hidden_size initializer_range intermediate_size max_position_embeddings "
        "mlp_only_layers moe_intermediate_size norm_topk_prob num_attention_heads num_experts "
        "num_experts_per_tok num_hidden_layers num_key_value_heads output_router_logits "
        "pad_token_id rms_norm_eps rope_parameters router_aux_loss_coef sliding_window "
        "tie_word_embeddings use_cache use_sliding_window vocab_size"
    ),
    "stablelm": (
        "attention_dropout bos_token_id eos_token_id head_dim hidden_act hidden_dropout "
        "hidden_size initializer_range intermediate_size layer_norm_eps max_position_embeddings "
        "num_attention_heads num_hidden_layers num_key_value_heads pad_token_id "
        "partial_rotary_factor qk_layernorm rope_parameters tie_word_embeddings use_cache "
        "use_parallel_residual use_qkv_bias vocab_size"
    ),
    "starcoder2": (
        "attention_dropout bos_token_id embedding_dropout eos_token_id head_dim hidden_act "
        "hidden_size initializer_range intermediate_size max_position_embeddings norm_epsilon "
        "num_attention_heads num_hidden_layers num_key_value_heads pad_token_id residual_dropout "
        "rope_parameters sliding_window tie_word_embeddings use_bias use_cache vocab_size"
    ),
}
FIELDS: Final[Mapping[str, frozenset[str]]] = {
    family: frozenset(words.split()) for family, words in _WORDS.items()
}
