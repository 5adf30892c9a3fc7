"""PEFT adapters on int8 linears: they can be trained, loaded and unloaded as usual; merging into int8 weights is refused.

PEFT wraps a linear as its ``base_layer`` and merges by adding to the weight in place, which would fail without saying why.
"""

from __future__ import annotations

from typing import NoReturn

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..errors import UnsupportedFeatureError
from .linear import Int8convLinear


def refuse_merging() -> None:
    """Make PEFT's layers around int8 linears refuse to merge."""
    register_module_module_registration_hook(_on_registration)


def _on_registration(owner: nn.Module, name: str, module: nn.Module | None) -> None:
    wraps = name == "base_layer" and isinstance(module, Int8convLinear)
    if wraps and type(owner).__module__.partition(".")[0] == "peft":
        owner.merge = _merge  # type: ignore[assignment]


def _merge(*args: object, **options: object) -> NoReturn:
    raise UnsupportedFeatureError(
        "an adapter cannot be merged into int8 weights",
        hint="dequantize the model first: PeftModel.from_pretrained(model.dequantize(), ADAPTER).merge_and_unload()",
    )  # fmt: skip
