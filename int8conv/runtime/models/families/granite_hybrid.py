"""Granite 4: Granite with Mamba 2 in most layers, and often without rotary positions; a shared FFN beside experts, or alone."""

from __future__ import annotations

from typing import Any

from ..config import DecoderConfig, Experts
from ..raw_config import RawConfig
from ..rope import read_rope
from .family import Family
from .granite import read_granite
from .mamba import mamba_names, read_kinds, read_mamba
from .standard import COMPUTED, NAMES

_MOE = "model.layers.{}.block_sparse_moe."
_SHARED = "model.layers.{}.shared_mlp."


def _read(raw: RawConfig, model_type: str, **more: Any) -> DecoderConfig:  # fields of it
    raw.ignore("output_router_logits", "router_aux_loss_coef")
    count, none = raw.values.get("num_local_experts"), raw.values.get("shared_intermediate_size") == 0  # fmt: skip
    shared = 0 if none and count != 0 else raw.integer("shared_intermediate_size", 1024)
    raw.ignore("shared_intermediate_size")
    if count == 0:
        raw.ignore("num_local_experts", "num_experts_per_tok", "intermediate_size")
        return read_granite(raw, model_type, fused_gate=True, intermediate_size=shared, **more)
    experts = Experts(
        count=raw.integer("num_local_experts", 8),
        used=raw.integer("num_experts_per_tok", 2),
        intermediate_size=raw.integer("intermediate_size"), normalised=True, shared_size=shared, shared_gated=False,
    )  # fmt: skip
    return read_granite(raw, model_type, fused_gate=True, experts=experts, **more)


def read_hybrid(raw: RawConfig) -> DecoderConfig:
    layers = raw.integer("num_hidden_layers")
    key = "layers_block_type" if "layers_block_type" in raw.values else "layer_types"
    kinds = read_kinds(raw, key, ("mamba", "attention")) or ["mamba"] * layers
    rotated = raw.choice("position_embedding_type", {"rope": True, "nope": False}, "nope")
    return _read(
        raw, "granitemoehybrid", recurrence=read_mamba(raw), rope=read_rope(raw),
        recurrent_layers=tuple(kind == "mamba" for kind in kinds), unrotated=(not rotated,) * layers,
    )  # fmt: skip


_NAMES = {
    **NAMES,
    "router": f"{_MOE}router.layer",
    **{f"expert_{role}": f"{_MOE}experts.{{}}.{role}_proj" for role in ("gate_up", "down")},
    **{f"{prefix}gate_up": f"{_SHARED}input_linear" for prefix in ("", "shared_")},
    **{f"{prefix}down": f"{_SHARED}output_linear" for prefix in ("", "shared_")},
}
_STACKS = {
    f"{_MOE}input_linear": ("gate_up",), f"{_MOE}output_linear": ("down",),
    f"{_MOE}experts.gate_up_proj": ("gate_up",), f"{_MOE}experts.down_proj": ("down",),
}  # fmt: skip
HYBRID = Family("granitemoehybrid", "model.", {**_NAMES, **mamba_names("model.layers.{}.mamba.")}, read_hybrid, COMPUTED, stacks=_STACKS)  # fmt: skip
SHARED = Family("granitemoeshared", "model.", _NAMES, lambda raw: _read(raw, "granitemoeshared"), COMPUTED, stacks=_STACKS)  # fmt: skip
