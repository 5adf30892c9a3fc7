"""What a family file declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..config import DecoderConfig, RawConfig


@dataclass(frozen=True)
class Family:
    """How a ``model_type`` reads its config and names its modules.

    ``names`` maps the decoder's roles to module paths on the hub; ``{}`` stands for the layer's number. Roles:
    embed, positions, project_in, attn_norm, q, k, v, o, mlp_norm, gate, up, down, final_norm, project_out, head.
    """

    model_type: str
    base_prefix: str
    """Prefix that a checkpoint saved from the base model, without its head, lacks."""
    names: Mapping[str, str]
    read_config: Callable[[RawConfig], DecoderConfig]
    skipped: tuple[str, ...] = ()
    """Suffixes of tensors in old checkpoints that are computed, not learned."""
