"""Experts, which transformers fuses into one tensor per layer, as int8 linears of their own under the names of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from .linear import Int8convLinear

KEEPS_EXPERTS: Final = hasattr(HfQuantizer, "update_weight_conversions")
"""Whether a quantizer can keep transformers from fusing experts while it loads."""
_GATE, _UP, _WIDE, _DOWN = "gate", "up", "gate_up", "down"
_ROLES: Final = {
    "gate_proj": _GATE, "w1": _GATE, "up_proj": _UP, "w3": _UP, "gate_up_proj": _WIDE, "down_proj": _DOWN, "w2": _DOWN,
}  # fmt: skip
"""What an expert's linears are called in files."""
PARTS: Final = {
    "gate_proj": "gate_up_proj", "w1": "gate_up_proj", "w3": "gate_up_proj", "up_proj": "gate_up_proj", "w2": "down_proj",
}  # fmt: skip
"""Of which tensor of all experts they become a part, if it has another name."""
_COMPLETE: Final = ({_GATE, _UP, _DOWN}, {_WIDE, _DOWN}, {_UP, _DOWN})
_FUSED: Final = {"gate_up_proj", "up_proj", "down_proj"}
_BIAS: Final = "_bias"
_FEATURES: Final = ("_apply_gate", "has_gate", "is_transposed", "num_experts")


@dataclass
class ExpertsPlace:
    """A module of fused experts of which linears have been found in the file."""

    paths: dict[str, str] = field(default_factory=dict)
    """Path in the file -> path relative to the module, such as ``3.w1``."""

    def is_whole(self, module: nn.Module) -> bool:
        """Whether these are all linears of a module that can be replaced by them."""
        if not is_fused(module) or getattr(module, "has_post_expert_norm", False):
            return False
        parameters = {name.removesuffix(_BIAS) for name, _ in module.named_parameters()}
        found = [split_name(relative) for relative in self.paths.values()]
        roles = {role for role, _, _ in found}
        wide = _WIDE in roles or _GATE in roles
        if not parameters <= _FUSED or roles not in _COMPLETE or wide != bool(module.has_gate):
            return False
        if _GATE in roles and not getattr(module, "is_concatenated", True):
            return False
        count: Any = module.num_experts
        wanted = {(role, number) for role in roles for number in range(count)}
        return {(role, number) for role, number, _ in found} == wanted


def is_fused(module: nn.Module) -> bool:
    """Whether a module is one of transformers' fused experts, which all take the same arguments."""
    return KEEPS_EXPERTS and all(hasattr(module, name) for name in _FEATURES)


def split_name(relative: str) -> tuple[str, int, str]:
    """``3.w1`` or ``gate_up_proj.3`` -> role, number of the expert, and the name with ``{}`` for the number; ("", -1, "") if neither."""
    first, _, second = relative.partition(".")
    for number, name, pattern in ((first, second, "{}." + second), (second, first, first + ".{}")):
        if number.isdecimal() and name in _ROLES:
            return _ROLES[name], int(number), pattern
    return "", -1, ""


class Int8convExperts(nn.Module):
    """The experts of a layer: ``[tokens, hidden]``, chosen experts and their weights ``[tokens, used]`` -> ``[tokens, hidden]``.

    Its children are linears by expert and role; the rest, as the activation function, is the module's that it replaces.
    """

    def __init__(self, fused: nn.Module, paths: Iterable[str]) -> None:
        """Empty linears in the shapes of ``fused``, on the device ``meta``.

        Args:
            fused: experts of transformers, complete and of a known form (``ExpertsPlace.is_whole``).
            paths: the linears, relative to this module.
        """
        super().__init__()
        self.num_experts = int(fused.num_experts)  # type: ignore[arg-type]
        self._fused = (fused.to("meta"),)  # not registered: its parameters are not this module's
        self._patterns: dict[str, str] = {}
        for path in paths:
            role, _, pattern = split_name(path)
            self._patterns[role] = pattern
            _add(self, path, self._empty(role))
        vars(self)["_is_hf_initialized"] = True

    # such modules have no common class
    @property
    def fused(self) -> Any:
        """The module that this replaces, without its weights."""
        return self._fused[0]

    def _empty(self, role: str) -> nn.Linear:
        parameter = self.fused.get_parameter(self._parameter(role))
        rows, columns = _turned(self.fused, parameter).shape[1:]
        if role == _GATE or (role == _UP and _GATE in self._gated()):
            rows //= 2
        biased = bool(getattr(self.fused, "has_bias", False))
        with torch.device("meta"):
            return nn.Linear(columns, rows, biased, dtype=parameter.dtype)

    def _gated(self) -> tuple[str, ...]:
        return (_GATE, _UP) if self.fused.has_gate else ()

    def _parameter(self, role: str) -> str:
        if role == _DOWN:
            return "down_proj"
        return "gate_up_proj" if self.fused.has_gate else "up_proj"

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """As the module that this replaces."""
        y = torch.zeros_like(hidden_states)
        for number in top_k_index.unique().tolist():  # type: ignore[no-untyped-call]
            if number >= self.num_experts:  # of another rank
                continue
            token, place = torch.where(top_k_index == number)
            weighted = (
                self._expert(number, hidden_states[token]) * top_k_weights[token, place, None]
            )
            y.index_add_(0, token, weighted.to(y.dtype))
        return y

    def _expert(self, number: int, x: Tensor) -> Tensor:
        def linear(role: str) -> nn.Module:
            return self.get_submodule(self._patterns[role].format(number))

        if not self.fused.has_gate:
            activation: Callable[[Tensor], Tensor] = self.fused.act_fn
            y: Tensor = linear(_DOWN)(activation(linear(_UP)(x)))
            return y
        wide = linear(_WIDE)(x) if _WIDE in self._patterns else torch.cat([linear(_GATE)(x), linear(_UP)(x)], -1)  # fmt: skip
        apply_gate: Callable[[Tensor], Tensor] = self.fused._apply_gate
        found: Tensor = linear(_DOWN)(apply_gate(wide))
        return found

    def dense(self, dtype: torch.dtype) -> nn.Module:
        """The module that this replaces, with the dequantized weights."""
        fused: nn.Module = self.fused
        for name in [name for name, _ in fused.named_parameters()]:
            is_bias = name.endswith(_BIAS)
            down = name.startswith("down")
            roles = [_DOWN] if down else [r for r in (_WIDE, _GATE, _UP) if r in self._patterns]
            stack = torch.stack([self._stacked(roles, n, is_bias, dtype) for n in range(self.num_experts)])  # fmt: skip
            setattr(
                fused, name, nn.Parameter(stack if is_bias else _turned(fused, stack).contiguous())
            )
        return fused.train(self.training)

    def _stacked(self, roles: list[str], number: int, is_bias: bool, dtype: torch.dtype) -> Tensor:
        parts = []
        for role in roles:
            linear = self.get_submodule(self._patterns[role].format(number))
            assert isinstance(linear, Int8convLinear)
            part = linear.bias if is_bias else linear.dequantized()
            assert part is not None
            parts.append(part.detach().to(dtype))
        return torch.cat(parts)


def _turned(fused: nn.Module, stack: Tensor) -> Tensor:
    """``[experts, out, in]`` from the order of the module, or back."""
    return stack.transpose(1, 2) if fused.is_transposed else stack


def _add(owner: nn.Module, path: str, linear: nn.Linear) -> None:
    first, _, second = path.partition(".")
    if first not in owner._modules:
        owner.add_module(first, nn.Module())
    owner.get_submodule(first).add_module(second, linear)


def put_experts(model: PreTrainedModel, places: Mapping[str, ExpertsPlace]) -> None:
    """Replace modules of fused experts by ones with empty linears."""
    for name, place in places.items():
        fused = model.get_submodule(name)
        made = Int8convExperts(fused, place.paths.values())
        model.set_submodule(name, made.train(fused.training))


def restore_experts(model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Undo ``put_experts``, with dequantized weights."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Int8convExperts):
            model.set_submodule(name, module.dense(dtype or torch.float32))
