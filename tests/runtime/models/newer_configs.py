"""Configs of the families of 2025 and 2026 for ``test_families``: every feature of each at least once, in tiny sizes."""

from __future__ import annotations

from typing import Any

_SIZES: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "head_dim": 16,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "n_shared_experts": 2,
    "routed_scaling_factor": 1.7, "first_k_dense_replace": 1,
}  # fmt: skip
_GROUPS: dict[str, Any] = {"n_group": 4, "topk_group": 2}
_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
_WINDOWED: dict[str, Any] = {"sliding_window": 7, "layer_types": _WINDOWS}
_BIASES: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}

_OSS: dict[str, Any] = {
    "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 48, "sliding_window": 7,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 150000.0, "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 24,
    },
}  # fmt: skip
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip
_SHARED: dict[str, Any] = {
    "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 48,
}  # fmt: skip

_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 12, "mamba_expand": 2, "mamba_chunk_size": 16,
}  # fmt: skip
_MIXED = ["linear_attention", "full_attention", "linear_attention"]
_GRANITE: dict[str, Any] = {
    "head_dim": 12, "layer_types": _MIXED, "embedding_multiplier": 6.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1,
    "logits_scaling": 3.0, "shared_intermediate_size": 40,
}  # fmt: skip
_CONVOLVED: dict[str, Any] = {"head_dim": 12, "layer_types": ["conv", "full_attention", "conv"], "tie_word_embeddings": False, "pad_token_id": 0}  # fmt: skip
_NEMOTRON: dict[str, Any] = {
    "mamba_num_heads": 6, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 12, "chunk_size": 16, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "moe_intermediate_size": 40, "moe_shared_expert_intermediate_size": 56, "routed_scaling_factor": 1.7,
    "num_hidden_layers": None, "pad_token_id": 0, "n_group": 4, "topk_group": 2,
}  # fmt: skip
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}  # fmt: skip
_SIZES_WITHOUT_HEADS = {key: value for key, value in _SIZES.items() if key != "head_dim"}
_YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 24, "mscale": 0.7,
    "mscale_all_dim": 1.0,
}  # fmt: skip

_ALTERNATE = ["sliding_attention", "full_attention"] * 2
_GEMMA: dict[str, Any] = {
    "num_hidden_layers": 4, "layer_types": _ALTERNATE, "sliding_window": 7, "num_kv_shared_layers": 2, "pad_token_id": 0,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 101,
}  # fmt: skip

NEWER: dict[str, tuple[str, dict[str, Any]]] = {
    "seed_oss": ("seed_oss", _SIZES | {"attention_out_bias": True, "mlp_bias": True}),
    "cwm": ("cwm", _SIZES | _WINDOWED),
    "ministral": ("ministral", _SIZES | _WINDOWED),
    "ministral3": ("ministral3", _SIZES | {"rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 12,
        "mscale": 1.0, "mscale_all_dim": 0.7, "llama_4_scaling_beta": 0.4,
    }}),
    "granitemoe": ("granitemoe", _SIZES | {
        "num_local_experts": 5, "num_experts_per_tok": 2, "embedding_multiplier": 6.0, "residual_multiplier": 0.4,
        "attention_multiplier": 0.1, "logits_scaling": 3.0, "attention_bias": True, "head_dim": 12, "intermediate_size": 24,
    }),
    "gpt_oss": ("gpt_oss", _SIZES | _OSS | {"swiglu_limit": 0.5}),
    "gpt_oss, no windows, no biases": (
        "gpt_oss", _SIZES | _OSS | {"layer_types": ["full_attention"] * 3, "attention_bias": False},
    ),
    "helium": ("helium", _SIZES | {"head_dim": 12, "attention_bias": True}),
    "internlm3": ("internlm3", _SIZES | _BIASES),
    "ernie4_5": ("ernie4_5", _SIZES | {"use_bias": True}),
    "glm": ("glm", _SIZES | {"pad_token_id": 0}),
    "glm4": ("glm4", _SIZES | {"pad_token_id": 0, "attention_bias": False}),
    "olmo3": ("olmo3", _SIZES | _WINDOWED | {"rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
    }}),
    "gpt_bigcode": ("gpt_bigcode", {"vocab_size": 101, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 96}),
    "gpt_bigcode, all heads": (
        "gpt_bigcode",
        {"vocab_size": 101, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 96, "multi_query": False, "n_inner": 96},
    ),
    "gpt_neo": ("gpt_neo", {
        "vocab_size": 101, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 96,
        "attention_types": [[["global", "local"], 1]], "window_size": 7, "bos_token_id": 1, "eos_token_id": 2,
    }),
    "vaultgemma": ("vaultgemma", _SIZES | _WINDOWED | {"attn_logit_softcapping": 2.0}),
    "hyperclovax": ("hyperclovax", _SIZES | _BIASES | {
        "embedding_multiplier": 6.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1, "logits_scaling": 3.0,
    }),
    "smollm3": ("smollm3", _SIZES | {"no_rope_layer_interval": 2}),
    "cohere2": ("cohere2", _SIZES | _WINDOWED | {"head_dim": 12, "logit_scale": 1.0}),
    "exaone4": ("exaone4", _SIZES | _WINDOWED),
    "exaone4, no windows": ("exaone4", _SIZES | {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "exaone_moe": ("exaone_moe", _SIZES | _WINDOWED | _GROUPS | {
        "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "num_shared_experts": 1,
    }),
    "arcee": ("arcee", _SIZES | _BIASES),
    "nemotron": ("nemotron", _SIZES),
    "jais2": ("jais2", _SIZES),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", _SIZES | {"attention_bias": True}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", _SIZES | {"num_experts": 5, "moe_topk": 2}),
    "glm4_moe": ("glm4_moe", _SIZES | _ROUTED | _GROUPS | {"use_qk_norm": True, "attention_bias": True}),
    "glm4_moe, no groups": ("glm4_moe", _SIZES | _ROUTED | {"norm_topk_prob": False}),
    "solar_open": ("solar_open", _SIZES | _ROUTED | {"first_k_dense_replace": 0}),
    "dots1": ("dots1", _SIZES | _ROUTED | _WINDOWED | {"norm_topk_prob": True}),
    "deepseek_v2": (
        "deepseek_v2", _SIZES_WITHOUT_HEADS | _LATENT | _ROUTED | _GROUPS
        | {"topk_method": "group_limited_greedy", "rope_parameters": _YARN},
    ),
    "deepseek_v2, plain queries, wide values": (
        "deepseek_v2", _SIZES_WITHOUT_HEADS | _LATENT | _ROUTED | {"q_lora_rank": None, "v_head_dim": 28},
    ),
    "deepseek_v3": ("deepseek_v3", _SIZES_WITHOUT_HEADS | _LATENT | _ROUTED | _GROUPS | {"rope_parameters": _YARN}),
    "deepseek_v3, halves, biases, a wide latent": (
        "deepseek_v3", _SIZES_WITHOUT_HEADS | _LATENT | _ROUTED | _GROUPS
        | {"rope_interleave": False, "attention_bias": True, "kv_lora_rank": 96, "qk_nope_head_dim": 2, "v_head_dim": 4},
    ),
    "deepseek_v32": (
        "deepseek_v32", _SIZES_WITHOUT_HEADS | _LATENT | _ROUTED | _GROUPS
        | {"num_hidden_layers": 2, "index_topk": 80, "index_n_heads": 2, "index_head_dim": 12},
    ),
    "glm4_moe_lite": ("glm4_moe_lite", _SIZES_WITHOUT_HEADS | _LATENT | _ROUTED),
    "qwen3_next": ("qwen3_next", _SIZES | _DELTA | _SHARED),
    "qwen3_next, one key head, some layers dense": (
        "qwen3_next",
        _SIZES | _DELTA | _SHARED
        | {"linear_num_key_heads": 1, "mlp_only_layers": [0], "attention_bias": True, "linear_conv_kernel_dim": 2},
    ),
    "qwen3_5_text": ("qwen3_5_text", _SIZES | _DELTA),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", _SIZES | _DELTA | _SHARED),
    "minimax_m2": ("minimax_m2", _SIZES | {
        "num_local_experts": 6, "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    }),
    "gemma4_text": ("gemma4_text", _SIZES | _GEMMA | {
        "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "use_double_wide_mlp": True,
        "final_logit_softcapping": 3.0,
    }),
    "gemma4_text, experts, own keys, biases": ("gemma4_text", _SIZES | _GEMMA | {
        "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "num_hidden_layers": 3, "layer_types": _ALTERNATE[1:4],
        "global_head_dim": 24, "enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 40,
        "attention_bias": True, "use_bidirectional_attention": "vision",
    }),
    "gemma4_unified_text": ("gemma4_unified_text", _SIZES | _GEMMA | {"global_head_dim": 24}),
    "gemma3n_text": ("gemma3n_text", _SIZES | _GEMMA | {
        "vocab_size_per_layer_input": 90, "laurel_rank": 4, "altup_num_inputs": 3, "altup_active_idx": 0, "hidden_size": 64,
        "activation_sparsity_pattern": [0.7, 0.0, 0.3, 0.0], "intermediate_size": [64, 48] * 2,
    }),
    "gemma3n_text, no scale": ("gemma3n_text", _SIZES | _GEMMA | {
        "altup_num_inputs": 2, "altup_active_idx": 1, "altup_correct_scale": False, "num_kv_shared_layers": 0, "hidden_size": 64,
        "num_hidden_layers": 3, "layer_types": _ALTERNATE[:3], "laurel_rank": 4, "intermediate_size": 48,
    }),
    "apertus": ("apertus", _SIZES_WITHOUT_HEADS | {"attention_bias": True}),
    "phimoe": ("phimoe", _SIZES_WITHOUT_HEADS | {
        "num_local_experts": 5, "router_jitter_noise": 0.3, "attention_bias": True, "lm_head_bias": True, "sliding_window": 9,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 96, "short_mscale": 1.2, "long_mscale": 1.2,
            "short_factor": [1.0, 1.1, 1.3, 1.5, 1.6, 2.0], "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0],
        },
    }),
    "youtu": ("youtu", _SIZES_WITHOUT_HEADS | _LATENT | {"attention_bias": True}),
    "glm_moe_dsa": (
        "glm_moe_dsa", _SIZES_WITHOUT_HEADS | _LATENT | _ROUTED
        | {"num_hidden_layers": 2, "index_topk": 80, "index_n_heads": 2, "index_head_dim": 12},
    ),
    "ernie4_5_moe": ("ernie4_5_moe", _SIZES_WITHOUT_HEADS | {
        "moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 40, "tie_word_embeddings": False,
    }),
    "hy_v3": ("hy_v3", _SIZES | {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "num_shared_experts": 2, "attention_bias": True,
        "pad_token_id": 0,
    }),
    "iquestcoder": ("iquestcoder", _SIZES | _BIASES),
    "mellum": ("mellum", _SIZES | _WINDOWED | {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "mlp_layer_types": ["sparse"] * 3,
    }),
    "granitemoehybrid": ("granitemoehybrid", _SIZES | _MAMBA | _GRANITE | {"num_local_experts": 5, "position_embedding_type": None}),
    "granitemoehybrid, dense, rotary, biases": (
        "granitemoehybrid",
        _SIZES | _MAMBA | _GRANITE
        | {"num_local_experts": 0, "position_embedding_type": "rope", "attention_bias": True, "mamba_proj_bias": True}
        | {"mamba_conv_bias": False, "time_step_limit": [0.3, 1.4]},
    ),
    "granitemoeshared": ("granitemoeshared", _SIZES | {"num_local_experts": 5, "shared_intermediate_size": 40, "head_dim": 12}),
    "bamba": ("bamba", _SIZES | _MAMBA | {"attn_layer_indices": [1], "pad_token_id": 0, "head_dim": 12}),
    "falcon_h1": ("falcon_h1", _SIZES | _MAMBA | {"mamba_d_ssm": 96, "pad_token_id": 0}),
    "falcon_h1, a norm, multipliers": (
        "falcon_h1",
        _SIZES | _MAMBA | {"mamba_d_ssm": 96, "pad_token_id": 0, "mamba_rms_norm": True, "projectors_bias": True, "mlp_bias": True}
        | {"ssm_multipliers": [0.7, 1.2, 0.8, 1.1, 0.9], "ssm_in_multiplier": 1.3, "ssm_out_multiplier": 0.6, "key_multiplier": 0.8}
        | {"attention_in_multiplier": 1.2, "attention_out_multiplier": 0.7, "mlp_multipliers": [0.9, 0.6], "lm_head_multiplier": 0.5}
        | {"embedding_multiplier": 3.0},
    ),
    "nemotron_h": ("nemotron_h", _SIZES | _NEMOTRON | {"hybrid_override_pattern": "M*-ME", "use_bias": True}),
    "lfm2": ("lfm2", _SIZES | _CONVOLVED | {"block_multiple_of": 16, "conv_bias": True, "conv_L_cache": 5}),
    "lfm2_moe": ("lfm2_moe", _SIZES | _CONVOLVED | {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "num_dense_layers": 1, "routed_scaling_factor": 1.7,
    }),
}  # fmt: skip
