"""The text part of multimodal models: its config, and where its tensors are.

Vision, audio and projector are not run: they stay in the folder in 16 bits, and prompts are text. Rotary positions with three axes
("mrope", Qwen2-VL, arXiv:2409.12191, section 2.1) have the same position on all axes in text, which makes them plain ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from ...formats.int8.names import WEIGHT

WRAPPERS: Final[Mapping[str, str]] = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "idefics3": "llama",
    "internvl": "qwen2",
    "llava": "llama",
    "llava_next": "llama",
    "mistral3": "mistral",
    "qwen2_5_vl": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3",
    "smolvlm": "llama",
}
"""``model_type`` of multimodal models, and of their text part if its section does not say."""
_SAME_AS: Final = {
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
}
"""Types of text parts that compute what a family does, for text."""
_THREE_AXES: Final = ("qwen3_5_text", "qwen3_5_moe_text")
"""Families whose own configs have positions with three axes."""
_OF_WRAPPERS: Final = {
    "image_token_id", "text_config", "video_token_id", "vision_config", "vision_end_token_id", "vision_start_token_id",
    "vision_token_id",
}  # fmt: skip
DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = {
    "gemma3_text": {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
    },
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096,
    },
}  # fmt: skip
"""Keys that text sections leave out if they have the reference's default."""
PLACES: Final = (
    "model.language_model.",
    "language_model.model.",
    "model.text_model.",
    "language_model.",
)
"""What stands before the names of the text part, in place of ``model.``."""
_HEADS: Final = ("lm_head", "language_model.lm_head")


def is_wrapper(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a known multimodal model."""
    return isinstance(config.get("model_type"), str) and config["model_type"] in WRAPPERS


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a known multimodal model's text part, as its family has it; any other config as it is."""
    if config.get("model_type") in _THREE_AXES:
        return _with_one_axis(config)
    if not is_wrapper(config):
        return config
    section = config.get("text_config")
    if isinstance(section, dict):
        found = dict(section)
        if isinstance(tied := config.get("tie_word_embeddings"), bool):
            found["tie_word_embeddings"] = tied or found.get("tie_word_embeddings") is True
    else:  # Qwen2-VL as released: one level
        found = {key: value for key, value in config.items() if key not in _OF_WRAPPERS}
    model_type = found.get("model_type", WRAPPERS[config["model_type"]])
    if isinstance(model_type, str):
        model_type = _SAME_AS.get(model_type, model_type)
        for key, value in DEFAULTS.get(model_type, {}).items():
            if key not in found:
                found[key] = value
    found["model_type"] = model_type
    return _with_one_axis(found)


def _with_one_axis(config: dict[str, Any]) -> dict[str, Any]:
    sections = {key: config.get(key) for key in ("rope_scaling", "rope_parameters")}
    return config | {
        key: _of_text(found) for key, found in sections.items() if isinstance(found, dict)
    }


def _of_text(rope: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in rope.items() if not key.startswith("mrope_")}
    return {key: "default" if value == "mrope" else value for key, value in kept.items()}


def text_names(
    names: Mapping[str, str], prefix: str, tensors: Collection[str]
) -> dict[str, str] | None:
    """A family's names (with its ``prefix``) as in a multimodal checkpoint; None if they are not behind a known prefix."""
    embed = f"{names['embed'].removeprefix(prefix)}.{WEIGHT}"
    place = next((place for place in PLACES if place + embed in tensors), None)
    if place is None:
        return None
    found = {role: place + name.removeprefix(prefix) for role, name in names.items()}
    heads = (head for head in _HEADS if f"{head}.{WEIGHT}" in tensors)
    return found | {"head": next(heads, names["head"])}
