"""What llama.cpp needs to know of a model: its name for the family, the sizes, and its names of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ...errors import UnsupportedFeatureError, UnsupportedModelError
from ...runtime.models.architecture import Architecture, Module
from ...runtime.models.config import Activation, DecoderConfig, Rope


@dataclass(frozen=True)
class Target:
    """A family as llama.cpp knows it."""

    name: str
    """``general.architecture``."""
    interleaved: bool = False
    """Whether it rotates adjacent channels, so that rows of q and k move."""
    activation: Activation = "silu"
    scaled: bool = False
    """Whether it multiplies embeddings by the root of their width."""
    norms: str = "before"
    pattern: int = 0
    """Every so many layers, one has no window; 0: it knows no windows."""


TARGETS: Final = {
    "llama": Target("llama", interleaved=True),
    "mistral": Target("llama", interleaved=True),
    "qwen2": Target("qwen2"),
    "qwen3": Target("qwen3"),
    "gemma": Target("gemma", activation="gelu_tanh", scaled=True),
    "gemma3_text": Target("gemma3", activation="gelu_tanh", scaled=True, norms="around", pattern=6),
}
"""By ``model_type``."""

_OUTSIDE: Final = {"embed": "token_embd", "final_norm": "output_norm", "head": "output"}
_LAYER: Final = {
    "attn_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "attn_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
    "mlp_post_norm": "post_ffw_norm",
}  # fmt: skip
_LOCAL_THETA: Final = 1e4

Number = int | float | str
Field = tuple[str, Number]
"""The name of a method of ``gguf.GGUFWriter``, and its argument."""


def find_target(architecture: Architecture, file: object) -> Target:
    """How llama.cpp names and computes the family.

    Raises:
        UnsupportedModelError: its names for the family are not known here.
        UnsupportedFeatureError: the config asks for something that llama.cpp does not compute in this family.
    """
    family = architecture.family.model_type
    target = TARGETS.get(family)
    if target is None:
        raise UnsupportedModelError(
            "the names of this family in GGUF are not known", file=file, expected=" or ".join(TARGETS), found=family,
            hint="use llama.cpp's own converter, on the source or on what --to dense writes",
        )  # fmt: skip
    for feature, same in _features(architecture.config, target):
        if not same:
            raise UnsupportedFeatureError(f"llama.cpp does not compute this in its '{target.name}'", file=file, found=feature)  # fmt: skip
    return target


def _features(c: DecoderConfig, target: Target) -> Iterator[tuple[str, bool]]:
    """Features, and whether llama.cpp computes them as the config asks."""
    scale = c.hidden_size**0.5 if target.scaled else 1.0
    yield "another activation", c.activation == target.activation
    yield "another scale of embeddings", math.isclose(c.embedding_scale, scale)
    yield "norms in other places", c.norms == target.norms and c.final_norm and not c.parallel
    yield "LayerNorm", c.norm == "rms"
    yield "multipliers of residuals or logits", c.residual_scale == c.logit_scale == 1
    yield "a soft cap of scores", c.attention_softcap is None
    capped = c.logit_softcap is None or target.name == "gemma3"
    yield "a soft cap of logits", capped
    usual = c.head_dim**-0.5
    yield "another scale of scores", c.attention_scale is None or math.isclose(c.attention_scale, usual)  # fmt: skip
    yield "layers without positions", not any(c.unrotated) and c.query_growth == 0
    rope = c.rope
    known = rope is not None and rope.kind in ("default", "linear", "llama3", "yarn")
    yield "this scaling of rotary positions", known
    yield "heads rotated in part", rope is not None and rope.rotary_fraction == 1 and not rope.interleaved  # fmt: skip
    if rope is not None and rope.kind == "yarn":
        usual = 0.1 * math.log(max(rope.factor, 1.0)) + 1
        yield "another magnitude of yarn", math.isclose(rope.magnitude, usual)
    if target.pattern:
        size = max((w for w in c.windows if w is not None), default=None)
        expected = tuple(None if (i + 1) % target.pattern == 0 else size for i in range(c.num_layers))  # fmt: skip
        yield "windows in other layers", not c.windows or c.windows == expected
        yield "a rotary base of its own in windows", c.local_rope in (None, Rope(_LOCAL_THETA))


def model_fields(c: DecoderConfig, target: Target) -> Iterator[Field]:
    """Sizes and numbers of the model."""
    yield "vocab_size", c.vocab_size
    yield "context_length", c.max_positions
    yield "embedding_length", c.hidden_size
    yield "block_count", c.num_layers
    yield "feed_forward_length", c.intermediate_size
    yield "head_count", c.num_heads
    yield "head_count_kv", c.num_kv_heads
    yield "key_length", c.head_dim
    yield "value_length", c.head_dim
    yield "layer_norm_rms_eps", c.norm_eps
    yield "rope_dimension_count", c.head_dim
    if c.logit_softcap is not None:
        yield "final_logit_softcapping", c.logit_softcap
    if target.pattern and c.windows:
        yield "sliding_window", max(w for w in c.windows if w is not None)
    rope = c.rope
    assert rope is not None
    yield "rope_freq_base", rope.theta
    if rope.kind in ("linear", "yarn"):
        yield "rope_scaling_type", rope.kind
        yield "rope_scaling_factor", rope.factor
    if rope.kind == "yarn":
        yield "rope_scaling_orig_ctx_len", int(rope.original_positions)
        yield "rope_scaling_yarn_beta_fast", rope.beta_fast
        yield "rope_scaling_yarn_beta_slow", rope.beta_slow


def tensor_name(module: Module, kind: str) -> str:
    """llama.cpp's name of a module's weight or bias."""
    if module.layer is None:
        return f"{_OUTSIDE[module.role]}.{kind}"
    return f"blk.{module.layer}.{_LAYER[module.role]}.{kind}"


def frequency_factors(rope: Rope, size: int) -> npt.NDArray[np.float32] | None:
    """Divisors of the frequencies of each pair, float32 ``[size / 2]``; None if there are none. Only llama3's scaling needs them."""
    if rope.kind != "llama3":
        return None
    plain = 1.0 / rope.theta ** (np.arange(0, size, 2) / size)
    turns = rope.original_positions * plain / (2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    scaled = plain / rope.factor + (plain - plain / rope.factor) * kept.clip(0, 1)
    return np.asarray(plain / scaled, np.float32)


def row_order(module: Module, c: DecoderConfig, target: Target) -> Callable[[int], int] | None:
    """The row of q or k that each row in llama.cpp is; None: all stay. Pairs ``i`` and ``i + half`` of a head become adjacent."""
    if not target.interleaved or module.role not in ("q", "k"):
        return None
    size, half = c.head_dim, c.head_dim // 2

    def source(row: int) -> int:
        head, at = divmod(row, size)
        return head * size + at // 2 + (at % 2) * half

    return source
