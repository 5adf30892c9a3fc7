"""Where the quantized linears of a folder belong in a transformers model, which may rename, fuse or omit modules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import UnsupportedFeatureError
from .experts import PARTS, ExpertsPlace, is_fused, split_name


@dataclass(frozen=True)
class Places:
    """The linears of a folder by their use in the model; paths are those of the file."""

    linears: dict[str, str]
    """Stay int8: path -> path of the module that is replaced."""
    whole: dict[str, str] = field(default_factory=dict)
    """Dequantized into a matrix of the same shape, such as an embedding: path after renaming -> path."""
    stacks: dict[str, list[str]] = field(default_factory=dict)
    """Dequantized into a stack ``P``: P after renaming -> paths, in order."""
    fused: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Dequantized, then fused by transformers: parameter and pattern of its sources -> paths, in order."""
    experts: dict[str, ExpertsPlace] = field(default_factory=dict)
    """Modules of fused experts whose linears stay int8, by path; the linears are among ``linears``."""
    unfused: frozenset[str] = frozenset()
    """Patterns of sources that transformers would fuse into these modules."""

    def dequantized(self) -> list[str]:
        """The paths of linears that do not stay int8."""
        return [*self.whole.values(), *chain(*self.stacks.values(), *self.fused.values())]


@dataclass(frozen=True)
class _Names:
    """How transformers renames what a file has."""

    renamings: list[WeightRenaming]
    converters: list[WeightConverter]
    prefix: str
    state: dict[str, Any]

    @classmethod
    def of(cls, model: PreTrainedModel) -> _Names:
        mapping = get_model_conversion_mapping(model) or []
        renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
        converters = [each for each in mapping if isinstance(each, WeightConverter)]
        return cls(renamings, converters, model.base_model_prefix, model.state_dict())

    def in_model(self, name: str) -> tuple[str, str | None]:
        """The tensor of the model, and the pattern by which it is fused."""
        key, pattern = rename_source_key(
            name, self.renamings, self.converters, self.prefix, self.state
        )
        return key, None if pattern is None else str(pattern)

    def renamed(self, path: str) -> str:
        """A linear's path before anything is fused."""
        name: str = rename_source_key(f"{path}.weight", self.renamings, [])[0]
        return name.removesuffix(".weight")


def find_places(model: PreTrainedModel, paths: Iterable[str]) -> Places:
    """Where the linears ``paths`` of a file belong in ``model``; transformers reports those that the model does not have.

    Raises:
        UnsupportedFeatureError: the module is not a matrix.
    """
    names = _Names.of(model)
    state, modules = names.state, dict(model.named_modules())
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    ordered = sorted(paths, key=dot_natural_key)
    experts, unfused = _find_experts(names, modules, ordered)
    found = Places({}, experts=experts, unfused=unfused)
    for name, place in experts.items():
        found.linears.update({path: f"{name}.{inner}" for path, inner in place.paths.items()})
    stacks, fused = defaultdict[str, list[str]](list), defaultdict[tuple[str, str], list[str]](list)
    for path in ordered:
        if path in found.linears:
            continue
        key, pattern = names.in_model(f"{path}.weight")
        renamed = names.renamed(path)
        module = modules.get(key.removesuffix(".weight"))
        stack, _, number = renamed.rpartition(".")
        if pattern is not None:
            fused[key, pattern].append(path)
        elif isinstance(module, nn.Linear | Conv1D) and key not in tied:
            found.linears[path] = key.removesuffix(".weight")
        elif isinstance(module, nn.Linear | nn.Embedding):
            found.whole[renamed] = path
        elif module is not None:
            raise UnsupportedFeatureError(
                f"no int8 form of a {type(module).__name__} in transformers",
                tensor=f"{path}.weight",
            )
        elif number.isdecimal() and key not in state:
            stacks[stack].append(path)
        elif _owner(names, renamed):
            raise UnsupportedFeatureError(
                "transformers has all experts in one tensor, and these cannot be separate in int8", tensor=f"{path}.weight",
                hint="convert all experts of all layers or none; use a newer transformers",
            )  # fmt: skip
    found.stacks.update(stacks)
    found.fused.update(fused)
    return found


def _find_experts(
    names: _Names, modules: Mapping[str, nn.Module], paths: Iterable[str]
) -> tuple[dict[str, ExpertsPlace], frozenset[str]]:
    """Modules of fused experts, if all linears of all of them are in the file: transformers converts by patterns, not by layers."""
    found = defaultdict[str, ExpertsPlace](ExpertsPlace)
    patterns = set[str]()
    for path in paths:
        renamed = names.renamed(path)
        relative = ".".join(renamed.split(".")[-2:])
        owner = _owner(names, renamed)
        if owner and relative != renamed and owner in modules:
            found[owner].paths[path] = relative
            patterns |= {p for p in (names.in_model(f"{path}.weight")[1],) if p is not None}
    everywhere = {name for name, module in modules.items() if is_fused(module)}
    if set(found) == everywhere and all(place.is_whole(modules[n]) for n, place in found.items()):
        return dict(found), frozenset(patterns)
    return {}, frozenset()


def _owner(names: _Names, renamed: str) -> str:
    """The module of fused experts that a linear of one expert belongs to; "" if it is none."""
    *parent, first, second = ("", *renamed.split("."))
    part = second if first.isdecimal() else first
    if not parent or not split_name(f"{first}.{second}")[0]:
        return ""
    for stem in (part, PARTS.get(part, part)):
        key, _ = names.in_model(".".join([*parent[1:], stem]))
        if key in names.state:
            return key.rpartition(".")[0]
    return ""
