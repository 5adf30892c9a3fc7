"""The parts of a transformers decoder layer as one compiled call takes them, and whether they are still what they were."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter, is_
from typing import Final

import torch
from torch import Tensor, nn

from ..kernels.cpu.fused import FusedLayer
from ..kernels.weight import MixedWeight
from ..runtime.backends.numba_backend import compile_layer
from ..runtime.backends.parts import BlockParts, FeedForwardParts
from ..runtime.decoder.attention_spec import AttentionSpec
from ..runtime.decoder.norms import NormWeights
from ..runtime.models.config import DecoderConfig
from ..runtime.weights.projections import MixedProjection
from .linear import Int8convLinear

_NORMS: Final = ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm")
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_VERSION: Final = attrgetter("_version")


@dataclass(frozen=True)
class LayerParts:
    """What a layer consists of in the runtime's terms; holds no tensors."""

    config: DecoderConfig
    layer: int
    paths: Mapping[str, str]
    """Modules by role, relative to the layer."""

    @property
    def spec(self) -> AttentionSpec:
        """Attention without the norms of heads."""
        return AttentionSpec.of(self.config, self.layer, None, None)

    def build(self, module: nn.Module) -> Built | None:
        """The layer's compiled form; None if a part of it is no longer an int8 linear, is not on the host, or has no compiled form."""
        try:
            modules = {role: module.get_submodule(path) for role, path in self.paths.items()}
        except AttributeError:
            return None
        groups = [
            self._linears(modules, *roles)
            for roles in (("qkv", "q", "k", "v"), ("o",), ("gate_up", "gate", "up"), ("down",))
        ]
        if not all(groups) or not _on_host(modules.values()):
            return None
        qkv, out, wide, down = (_projection(linears) for linears in groups)
        if qkv is None or out is None or wide is None or down is None:
            return None
        ffn = FeedForwardParts(wide, down, self.config.activation, self.config.gated)
        heads = (self._norm(modules, "q_norm"), self._norm(modules, "k_norm"))
        spec = AttentionSpec.of(self.config, self.layer, *heads)
        norms = (self._norm(modules, role) for role in _NORMS)
        compiled = compile_layer(BlockParts(self.config, spec, qkv, out, ffn, *norms))
        return None if compiled is None else Built(compiled, module, modules.values())

    @staticmethod
    def _linears(modules: Mapping[str, nn.Module], *roles: str) -> list[Int8convLinear]:
        """The linears of one input; none if one of them is something else."""
        found = [modules[role] for role in roles if role in modules]
        linears = [each for each in found if type(each) is Int8convLinear]
        return linears if len(linears) == len(found) else []

    def _norm(self, modules: Mapping[str, nn.Module], role: str) -> NormWeights | None:
        if role not in modules:
            return None
        weight, bias = (modules[role]._parameters.get(name) for name in ("weight", "bias"))
        assert weight is not None
        gain = weight.detach().float()
        gain = gain + self.config.norm_offset if self.config.norm_offset else gain
        shift = None if bias is None else bias.detach()
        return NormWeights(self.config.norm == "rms", self.config.norm_eps, gain, shift)


class Built:
    """A compiled layer, made of what its modules were at that time."""

    def __init__(self, compiled: FusedLayer, layer: nn.Module, parts: Iterable[nn.Module]) -> None:
        self.compiled = compiled
        inner = [each for each in layer.modules() if each is not layer]
        holders = [layer, *inner]
        self._children = [(m._modules, name, child) for m in holders for name, child in m._modules.items()]  # fmt: skip
        self._hooks = tuple(getattr(m, name) for m in inner for name in _HOOKS)
        self._attributes = tuple(m.__dict__ for m in inner)
        self._linears = [each for each in parts if isinstance(each, Int8convLinear)]
        self._places = [(held, name) for m in inner for held in (m._parameters, m._buffers) for name, t in held.items() if t is not None]  # fmt: skip
        self._tensors = self._now()
        self._state = self._state_of(self._tensors)

    def is_observed(self) -> bool:
        """Whether somebody wants to see what is inside of the layer, or computes it otherwise: hooks, another ``forward``, W8A8."""
        return (
            any(self._hooks)
            or any("forward" in attributes for attributes in self._attributes)
            or any(linear.mode == "w8a8" for linear in self._linears)
        )

    def is_current(self) -> bool:
        """Whether no module or tensor has been replaced, moved or written to since."""
        if not all(held.get(name) is child for held, name, child in self._children):
            return False
        now = self._now()
        return all(map(is_, now, self._tensors)) and self._state_of(now) == self._state

    def _now(self) -> list[Tensor]:
        return [t for held, name in self._places if (t := held.get(name)) is not None]

    @staticmethod
    def _state_of(tensors: Sequence[Tensor]) -> tuple[list[int], list[int]]:
        return list(map(Tensor.data_ptr, tensors)), list(map(_VERSION, tensors))


def _on_host(modules: Iterable[nn.Module]) -> bool:
    """Whether all tensors are in memory, and in dtypes and of a kind that compiled code can watch."""
    tensors = [t for m in modules for t in (*m.parameters(False), *m.buffers(False))]
    floats = (t.dtype == torch.float32 for m in modules for t in m.parameters(False) if t.dtype != torch.int8)  # fmt: skip
    return all(floats) and all(t.device.type == "cpu" and not t.is_inference() for t in tensors)


def _projection(linears: Sequence[Int8convLinear]) -> MixedProjection | None:
    """Linears of one input as one; None if their outlier columns differ."""
    first, *others = mixed = [linear.mixed() for linear in linears]
    index = first.outlier_index
    for other in others:
        same = other.outlier_index is index or (
            index is not None and other.outlier_index is not None and torch.equal(index, other.outlier_index)
        )  # fmt: skip
        if not same:
            return None
    columns = [each.outlier_weight for each in mixed if each.outlier_weight is not None]
    weight = MixedWeight(
        _rows([each.codes for each in mixed]), _rows([each.scale for each in mixed]), index,
        _rows(columns) if columns else None, first.threshold, activation_bits=first.activation_bits,
    )  # fmt: skip
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    if len(biases) not in (0, len(linears)):
        return None
    if others and weight.codes.data_ptr() != first.codes.data_ptr():
        _share(linears, weight)
    sizes = [linear.out_features for linear in linears]
    return MixedProjection(weight, torch.cat(biases) if biases else None, sizes, None)


def _rows(parts: Sequence[Tensor]) -> Tensor:
    """Matrices or vectors one below the other: without a copy if that is how they lie in memory, as in a mapped file."""
    first = parts[0]
    if len(parts) == 1:
        return first.contiguous()
    follows = all(a.data_ptr() + a.nbytes == b.data_ptr() for a, b in pairwise(parts))
    if not follows or not all(part.is_contiguous() for part in parts):
        return torch.cat(list(parts))
    count = sum(part.numel() for part in parts)
    memory = (ctypes.c_byte * (count * first.itemsize)).from_address(first.data_ptr())
    found = torch.frombuffer(memory, dtype=first.dtype, count=count)
    return found.view(-1, *first.shape[1:])


def _share(linears: Sequence[Int8convLinear], joined: MixedWeight) -> None:
    """Let linears be views of what they have been copied into, so that their weights are in memory once."""
    begin = 0
    for linear in linears:
        rows = slice(begin, begin + linear.out_features)
        begin = rows.stop
        linear.weight.data = joined.codes[rows].unsqueeze(-1)
        linear.weight_scale.data = joined.scale[rows]
        if linear.outlier_weight is not None and joined.outlier_weight is not None:
            linear.outlier_weight.data = joined.outlier_weight[rows]
