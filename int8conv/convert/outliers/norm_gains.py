"""The gains of norms: the stored weight, or 1 + weight in families that store gains around 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...runtime.models.architecture import Architecture
from ..by_name.linear_names import is_vision_or_audio

_TYPES: Final = (
    "gemma gemma2 gemma3 gemma3_text minimax_m3_vl minimax_m3_vl_text muse_glimmer muse_glimmer_text muse_spark "
    "muse_spark_text nemotron qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text "
    "recurrent_gemma step3p5 step3p7 t5_gemma_module t5gemma t5gemma2 t5gemma2_decoder t5gemma2_encoder "
    "t5gemma2_text vaultgemma videoprism videoprism_text_model"
)
ONE_PLUS_WEIGHT: Final = frozenset(_TYPES.split())
"""Model types of transformers 5.23.0 whose (text) models have such norms."""


def norm_offset(config: Mapping[str, Any], architecture: Architecture | None) -> float:
    """The offset to add to the weights of a model's norms; ``architecture`` is None if the runtime does not know it."""
    if architecture is not None:
        return architecture.config.norm_offset
    text = config.get("text_config")
    found = text.get("model_type") if isinstance(text, dict) else None
    model_type = found if isinstance(found, str) else config.get("model_type")
    return float(isinstance(model_type, str) and model_type in ONE_PLUS_WEIGHT)


def offset_of(name: str, offset: float) -> float:
    """The offset of one norm: vision and audio parts have other norms."""
    return 0.0 if is_vision_or_audio(name) else offset
