"""What a family file declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import DecoderConfig, RawConfig


@dataclass(frozen=True)
class Family:
    """How a ``model_type`` reads its config and names its modules.

    ``names`` maps the decoder's roles to module paths on the hub; the first ``{}`` stands for the layer's number, a second one
    for the expert's. Roles: embed, positions, embedding_norm, project_in, attn_norm, q, k, v (or qkv), q_norm, k_norm, o,
    attn_post_norm, mlp_norm (without it a parallel FFN reads what attention reads), gate, up (or gate_up), down,
    mlp_post_norm, router, expert_gate, expert_up, expert_down, shared_gate, shared_up, shared_down, shared_router, final_norm,
    project_out, head.
    """

    model_type: str
    base_prefix: str
    """Prefix that a checkpoint saved from the base model, without its head, lacks."""
    names: Mapping[str, str]
    read_config: Callable[[RawConfig], DecoderConfig]
    skipped: tuple[str, ...] = ()
    """Suffixes of tensors in old checkpoints that are computed, not learned."""
    variant: Callable[[dict[str, Any]], Mapping[str, str]] | None = None
    """The names by config, where they differ within the family."""
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Paths of tensors that hold a layer's experts, ``[experts, out, in]``, instead of a tensor each; and which of an expert's
    matrices (gate, up, down) stand below each other in one of theirs."""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Beside such stacks: other paths of modules, and their role."""
