"""Which tensors of a source become int8, stay in 16 bits or are left out, according to the decoder's modules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ...errors import ArgumentError
from ...formats.int8.names import BIAS, WEIGHT
from ...formats.safetensors.dtypes import FLOAT_DTYPES, FP8_DTYPES
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.checkpoint import Checkpoint
from ...formats.source.four_bit import SHAPE_SUFFIX
from ...formats.source.fp8 import scale_tensor, scaled_weight
from ...formats.source.matrix import Matrix, find_matrix
from ...runtime.models.architecture import Architecture, Module, find_tensor

Head = Literal["16bit", "int8", "int8-tied"]
HEADS: Final[tuple[Head, ...]] = ("16bit", "int8", "int8-tied")


@dataclass(frozen=True)
class Linear:
    """A linear to quantize."""

    path: str
    weight: Matrix
    bias: StoredTensor | None = None


@dataclass(frozen=True)
class Group:
    """Linears that share an input, in the order in which they are stored next to each other."""

    linears: tuple[Linear, ...]
    kind: str
    """Their kind, for display."""
    input: str
    """Path that identifies their input in calibration."""
    exact_input: bool = False
    """Whether its activations are always multiplied in 16 bits."""


@dataclass(frozen=True)
class Kept:
    """A tensor that is not quantized; a matrix with scales is widened to 16 bits."""

    name: str
    source: StoredTensor | Matrix
    kind: str


@dataclass(frozen=True)
class Selection:
    """Everything in a source, in output order."""

    items: tuple[Group | Kept, ...]
    skipped: dict[str, str]
    """Tensors left out, and why."""
    notes: tuple[str, ...] = ()
    """Notes for the user."""


@dataclass(frozen=True)
class Patterns:
    """Regular expressions, searched for in a linear's path."""

    keep: tuple[str, ...] = ()
    """Linears that stay in 16 bits."""
    quantize: tuple[str, ...] = ()
    """Additional matrices to quantize: head, embeddings."""
    head: Head = "16bit"
    """Whether to quantize the head, and with ``"int8-tied"`` also one that is the token embedding."""

    def check(self, quantized: Collection[str], others: Collection[str]) -> None:
        """Refuse a pattern that has no effect.

        Raises:
            ArgumentError: names the pattern and a path that it could match.
        """
        for option, patterns, paths in (
            ("keep matches no linear that would be quantized", self.keep, quantized),
            ("quantize matches no matrix that would be kept", self.quantize, others),
        ):
            for pattern in patterns:
                if not any(re.search(pattern, path) for path in paths):
                    example = (
                        f"such as {next(iter(paths))}" if paths else "no pattern: there are none"
                    )
                    raise ArgumentError(option, expected=example, found=repr(pattern))


def matches(patterns: Iterable[str], path: str) -> bool:
    """Whether one of the regular expressions is found in ``path``."""
    return any(re.search(pattern, path) for pattern in patterns)


def select_modules(
    checkpoint: Checkpoint, architecture: Architecture, patterns: Patterns
) -> Selection:
    """The selection for a family that the runtime knows.

    Raises:
        ArgumentError: a pattern matches nothing.
        MissingTensorError, ShapeError, UnsupportedDtypeError, CompanionError: the source does not match its config.
    """
    modules = architecture.modules
    patterns.check(
        [m.path for m in modules if m.group], [m.path for m in modules if _quantizable(m)]
    )
    by_path, head = {m.path: m for m in modules}, _int8_head(architecture, patterns.head)
    items: list[Group | Kept] = []
    for module in modules:
        if module.group and not matches(patterns.keep, module.path):
            quantized = [path for path in module.group if not matches(patterns.keep, path)]
            if quantized[0] == module.path:
                linears = tuple(_linear(checkpoint, by_path[path]) for path in quantized)
                items.append(Group(linears, module.kind, module.group[0]))
        elif module == head or (_quantizable(module) and matches(patterns.quantize, module.path)):
            items.append(
                Group((_linear(checkpoint, module),), module.kind, module.path, module == head)
            )
        else:
            items += _kept(checkpoint, module)
    taken = {t.name for item in items for t in _tensors(item)}
    extras, skipped = _extras(checkpoint, architecture, taken)
    return Selection((*items, *extras), skipped, tuple(_notes(architecture, items, extras)))


def _tensors(item: Group | Kept) -> Iterator[StoredTensor | Matrix]:
    if isinstance(item, Kept):
        yield item.source
        return
    for x in item.linears:
        yield x.weight
        if x.bias is not None:
            yield x.bias


def _int8_head(architecture: Architecture, head: Head) -> Module | None:
    """The head, if it is to be quantized.

    Raises:
        ArgumentError: it is the token embedding, which was not asked for.
        UnsupportedModelError: there is none.
    """
    if head == "16bit":
        return None
    module = architecture.head()
    if module.kind == "embedding" and head == "int8":
        raise ArgumentError("head", expected="16bit, or int8-tied: it is the token embedding, which would be int8 for lookups as well",
                            found=head, tensor=module.tensor_name())  # fmt: skip
    return module


def _quantizable(module: Module) -> bool:
    """Whether a module that stays in 16 bits by default can also be int8."""
    return module.kind in ("embedding", "projection", "head") and module.role != "positions"


def _linear(checkpoint: Checkpoint, module: Module) -> Linear:
    weight = find_matrix(checkpoint, find_tensor(checkpoint, module), transposed=module.transposed)
    return Linear(module.path, weight, _bias(checkpoint, module))


def _bias(checkpoint: Checkpoint, module: Module) -> StoredTensor | None:
    """A linear's bias, including one that the config does not mention: it is not used, but stored next to its weight."""
    if module.bias or (not module.bare and f"{module.path}.{BIAS}" in checkpoint.tensors):
        return find_tensor(checkpoint, module, BIAS)
    return None


def _kept(checkpoint: Checkpoint, module: Module) -> Iterator[Kept]:
    yield keep(checkpoint, find_tensor(checkpoint, module), module.kind)
    if (bias := _bias(checkpoint, module)) is not None:
        yield keep(checkpoint, bias, module.kind)


def keep(checkpoint: Checkpoint, tensor: StoredTensor, kind: str) -> Kept:
    """A tensor that is not quantized.

    Raises:
        UnsupportedDtypeError: an integer weight, quantized by another program; or FP8 but not a matrix.
        CompanionError: FP8 without matching scales.
    """
    integers = tensor.dtype.startswith(("I", "U", "BOOL")) and not tensor.name.endswith(
        f".{WEIGHT}"
    )
    turned = tensor.name in checkpoint.transposed
    if (tensor.dtype in FLOAT_DTYPES and not turned) or integers:
        return Kept(tensor.name, tensor, kind)
    return Kept(tensor.name, find_matrix(checkpoint, tensor), kind)


def _extras(
    checkpoint: Checkpoint, architecture: Architecture, taken: Collection[str]
) -> tuple[list[Kept], dict[str, str]]:
    """Tensors that belong to no module of the decoder: kept unchanged unless they are redundant."""
    head = architecture.family.names["head"] + ".weight"
    extras, skipped = [], {}
    for name, tensor in checkpoint.tensors.items():
        if name in taken:
            continue
        if (reason := why_skipped(checkpoint, tensor)) is not None:
            skipped[name] = reason
        elif name == head and architecture.config.tied:
            skipped[name] = "tied to the token embedding"
        elif name.endswith(architecture.family.skipped):
            skipped[name] = COMPUTED
        else:
            extras.append(keep(checkpoint, tensor, "matches no rule"))
    return extras, skipped


def _notes(
    architecture: Architecture, items: Sequence[Group | Kept], extras: Sequence[Kept]
) -> Iterator[str]:
    modules = {m.path: m for m in architecture.modules}
    names = [t.name for item in (*items, *extras) for t in _tensors(item)]
    parents = ((name, *name.rpartition(".")[::2]) for name in names)
    unannounced = [
        name for name, path, kind in parents
        if path in modules and name not in modules and not (kind == WEIGHT or (kind == BIAS and modules[path].bias))
    ]  # fmt: skip
    if unannounced:
        yield f"{_some(unannounced)}: not mentioned in the config; kept but not used (transformers ignores them too)"
    before, _, _ = architecture.family.names["attn_norm"].partition("{}")
    numbers = ((name, name.removeprefix(before).partition(".")[0]) for name in names)
    count = architecture.config.num_layers
    beyond = [
        name for name, number in numbers
        if name.startswith(before) and re.fullmatch("[0-9]{1,9}", number) and int(number) >= count
    ]  # fmt: skip
    if beyond:
        yield f"{_some(beyond)}: in layers beyond the config's {count}; kept but not used (transformers ignores them too)"
    if shared := list(_shared(architecture, names)):
        yield f"{_some(shared)}: in layers that attend to keys of an earlier one; kept but not used (transformers ignores them too)"
    if predictors := [name for name in names if _PREDICTOR.match(name)]:
        yield f"{_some(predictors)}: for predicting several tokens at once; kept but not used (transformers ignores them too)"


def _shared(architecture: Architecture, names: Sequence[str]) -> Iterator[str]:
    """Tensors of keys and values of layers that have none of their own, which releases of Gemma 3n and 4 have all the same."""
    config, roles = architecture.config, architecture.family.names
    layers = [i for i in range(config.num_layers) if config.key_source(i) != i]
    paths = {
        roles[role].replace("{}", str(layer), 1)
        for layer in layers for role in ("k", "v", "k_norm", "v_norm") if role in roles
    }  # fmt: skip
    return (name for name in names if name.rpartition(".")[0] in paths)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


_PREDICTOR: Final = re.compile(r"(model\.(language_model\.)?|language_model\.)?mtp\.")
"""Modules beside the decoder, in Qwen3-Next and later."""
COMPUTED: Final = "computed, not learned"
_BUFFER: Final = re.compile(
    r"(^|\.)(masked_bias|attn_mask|attention_mask|causal_mask|(\w+_)?inv_freq|rotary_emb\.(cos|sin)_cached)$"
)
ACTIVATION_SCALES: Final = (
    ".input_scale", ".output_scale", ".q_scale", ".k_scale", ".v_scale", ".kv_scale", ".prob_scale",
    ".input_activation_scale", ".activation_scale",
)  # fmt: skip


def why_skipped(checkpoint: Checkpoint, tensor: StoredTensor) -> str | None:
    """Why a tensor is left out of any model's conversion; None if it is kept."""
    name = tensor.name
    if (weight := scaled_weight(checkpoint.tensors, name)) is not None:
        if scale_tensor(checkpoint, weight.name) == tensor:
            kind = "an FP8" if weight.dtype in FP8_DTYPES else "a four-bit"
            return f"scales of {kind} weight, already multiplied into it"
    elif name.endswith(ACTIVATION_SCALES) and checkpoint.has_fp8:
        return "a scale of FP8 activations, which the output does not have"
    packed = checkpoint.tensors.get(name.removesuffix(SHAPE_SUFFIX))
    if name.endswith(SHAPE_SUFFIX) and packed is not None and packed.dtype == "I4":
        return "the shape of a four-bit weight"
    if _BUFFER.search(name) or _is_causal_mask(tensor):
        return COMPUTED
    return None


def _is_causal_mask(tensor: StoredTensor) -> bool:
    """Early GPTs store theirs as ``bias``, ``[1, 1, positions, positions]``."""
    shape = tensor.shape
    square = len(shape) >= 3 and shape[-1] == shape[-2] and set(shape[:-2]) == {1}
    return square and tensor.name.endswith(f".{BIAS}")
