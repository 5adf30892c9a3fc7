"""The declaration in a family's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import DecoderConfig
from ..raw_config import RawConfig


@dataclass(frozen=True)
class Family:
    """How to read the config of a ``model_type``, and the names of its modules.

    ``names`` maps the decoder's roles to module paths on the hub; the first ``{}`` is the layer's number, a second one the
    expert's. Roles: embed, positions, embedding_norm, project_in, attn_norm, q, k, v (or qkv), q_norm, k_norm, o,
    sinks, attn_post_norm, mlp_norm (without it a parallel FFN reads what attention reads), gate, up (or gate_up), down,
    mlp_post_norm, router, expert_gate, expert_up, expert_down, shared_gate, shared_up, shared_down, shared_router, final_norm,
    project_out, head; delta_qkv and delta_z (or delta_qkvz), delta_b and delta_a (or delta_ba), delta_conv, delta_a_log,
    delta_dt_bias, delta_norm, delta_out in layers with Gated DeltaNet; q_a, q_a_norm and q_b (or q), kv_a, kv_a_norm, kv_b with latent
    attention.
    """

    model_type: str
    base_prefix: str
    """Prefix that is missing in checkpoints saved from the base model, without a head."""
    names: Mapping[str, str]
    read_config: Callable[[RawConfig], DecoderConfig]
    skipped: tuple[str, ...] = ()
    """Suffixes of tensors in old checkpoints that are computed, not learned."""
    variant: Callable[[dict[str, Any]], Mapping[str, str]] | None = None
    """Names depending on the config, if they differ within the family."""
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Paths of tensors that stack a layer's experts, ``[experts, out, in]``, and which of an expert's matrices (gate, up, down) are
    concatenated along the rows of each."""
    transposed_stacks: bool = False
    """Whether their matrices are ``[in, out]``, unless they have four bits."""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other paths of modules in checkpoints with such stacks, and their roles."""
