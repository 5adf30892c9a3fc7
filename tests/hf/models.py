"""Small random models, written by transformers and converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from int8conv.convert.converter import convert_checkpoint
from int8conv.hf.versions import DEQUANTIZES_ON_LOAD, transformers_version

_SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _SIZES | {"attention_bias": True},
    "gpt2": {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96, "bos_token_id": 1, "eos_token_id": 2},
    "opt": {"vocab_size": 96, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 96, "word_embed_proj_dim": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "phi3": _SIZES,
    "gemma3_text": _SIZES | {"head_dim": 16, "sliding_window": 8},
    "falcon": {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2},
    "mixtral": _SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": _SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16},
    "gpt_oss": _SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8},
}  # fmt: skip
"""By ``model_type``; gpt2 has ``Conv1D``, phi3 fused linears, the last three have experts that transformers fuses."""
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")


DEQUANTIZES = transformers_version() >= DEQUANTIZES_ON_LOAD
"""Whether this transformers can read what it has no linear for."""


def write_source(name: str, folder: Path, **changes: Any) -> Path:
    """A checkpoint in float16 with spread-out logits, and outlier channels."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **CONFIGS[name] | changes)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.half().save_pretrained(folder)
    return folder


def convert(name: str, folder: Path, source: dict[str, Any] | None = None, **options: Any) -> Path:
    """Such a checkpoint, converted."""
    calibrated = name in ("llama", "gemma3_text")  # the others save the time
    options.setdefault("outliers", "calibrated" if calibrated else "data-free")
    convert_checkpoint(
        write_source(name, folder / "source", **source or {}), folder / "int8", **options
    )
    return folder / "int8"


def load(folder: Path, **options: Any) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **options
    )
    return model


def token_ids(batch: int = 2, count: int = 24) -> Tensor:
    return torch.randint(3, 96, (batch, count), generator=torch.Generator().manual_seed(1))


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found
