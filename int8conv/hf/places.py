"""Where the quantized linears of a folder belong in a transformers model, which may rename, fuse or omit modules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

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

    def dequantized(self) -> list[str]:
        """The paths of linears that do not stay int8."""
        return [*self.whole.values(), *chain(*self.stacks.values(), *self.fused.values())]


def find_places(model: PreTrainedModel, paths: Iterable[str]) -> Places:
    """Where the linears ``paths`` of a file belong in ``model``; transformers reports those that the model does not have.

    Raises:
        UnsupportedFeatureError: the module is not a matrix.
    """
    mapping = get_model_conversion_mapping(model) or []
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    state, modules = model.state_dict(), dict(model.named_modules())
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    found = Places({})
    stacks, fused = defaultdict[str, list[str]](list), defaultdict[tuple[str, str], list[str]](list)
    for path in sorted(paths, key=dot_natural_key):
        name = f"{path}.weight"
        key, pattern = rename_source_key(
            name, renamings, converters, model.base_model_prefix, state
        )
        renamed = rename_source_key(name, renamings, [])[0].removesuffix(".weight")
        module = modules.get(key.removesuffix(".weight"))
        stack, _, number = renamed.rpartition(".")
        if pattern is not None:
            fused[key, str(pattern)].append(path)
        elif isinstance(module, nn.Linear | Conv1D) and key not in tied:
            found.linears[path] = key.removesuffix(".weight")
        elif isinstance(module, nn.Linear | nn.Embedding):
            found.whole[renamed] = path
        elif module is not None:
            raise UnsupportedFeatureError(
                f"no int8 form of a {type(module).__name__} in transformers", tensor=name
            )
        elif number.isdecimal() and key not in state:
            stacks[stack].append(path)
    found.stacks.update(stacks)
    found.fused.update(fused)
    return found
