"""Stacked experts in checkpoints of known families, split into the family's own tensors.

transformers 5 keeps the experts of a layer in two tensors, ``gate_up_proj [experts, 2 * inner, hidden]`` (gate before up) and
``down_proj [experts, hidden, inner]``, and can save them like that; MLX stacks each of the three. A matrix in a stack is
contiguous, so a name, a shape and an offset make it a tensor: nothing is copied, and everything that reads checkpoints sees the
experts as they are on the hub. The family defines the orientation of the matrices, even if they are square.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Final

from ...errors import CompanionError, DuplicateTensorError, UnsupportedModelError
from ...formats.int8.names import BIAS, WEIGHT
from ...formats.safetensors.dtypes import FOUR_BIT_DTYPES, SCALED_DTYPES
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.checkpoint import CONFIG_FILE, Checkpoint
from ...formats.source.fp8 import SCALE_SUFFIXES
from .architecture import Architecture, Module, read_architecture, shape_error
from .families import FAMILIES, Family, known_type
from .wrapped import PLACES, is_wrapper, text_part

_SUFFIX: Final = f".{WEIGHT}"
_BIASES: Final = "_bias"
"""Suffix of a stack's name for the biases of its matrices."""


def take_apart(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with one tensor per expert, under the names of its family; unchanged if nothing is stacked.

    Raises:
        ShapeError: a stack does not have the shape that the config implies.
        DuplicateTensorError: an expert also exists as a separate tensor.
        CompanionError: FP8 scales of a stack cannot be split with it.
        JsonFileError: the config is malformed.
    """
    model_type = known_type(text_part(checkpoint.config))
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None or not family.stacks:
        return checkpoint
    stacks = _matching(checkpoint, family, family.stacks, axes=3)
    if not stacks:
        return checkpoint
    try:
        architecture = read_architecture(
            checkpoint.config, checkpoint.tensors, checkpoint.folder / CONFIG_FILE
        )
    except UnsupportedModelError:  # converted by names and shapes, if at all
        return checkpoint
    return _apart(checkpoint, architecture, stacks)


def _matching(
    checkpoint: Checkpoint, family: Family, patterns: Mapping[str, tuple[str, ...]], *, axes: int
) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Tensors with that many axes whose path matches a pattern, with the layer and the value of the pattern."""
    wrapped = PLACES if is_wrapper(checkpoint.config) else ()
    prefix = "|".join(re.escape(each) for each in (family.base_prefix, *wrapped))
    compiled = [
        (re.compile(f"(?:{prefix})?" + _escaped(path.removeprefix(family.base_prefix))), roles)
        for path, roles in patterns.items()
    ]  # fmt: skip
    found = {}
    for name, tensor in checkpoint.tensors.items():
        if len(tensor.shape) != axes:
            continue
        path = name.removesuffix(_SUFFIX)
        for pattern, roles in compiled:
            if match := pattern.fullmatch(path):
                found[name] = int(match[1]), roles
    return found


def _escaped(path: str) -> str:
    before, _, behind = path.partition("{}")
    return f"{re.escape(before)}([0-9]{{1,9}}){re.escape(behind)}"


def _apart(
    checkpoint: Checkpoint, architecture: Architecture, stacks: Mapping[str, tuple[int, tuple[str, ...]]]
) -> Checkpoint:  # fmt: skip
    modules = {(m.layer, m.role): m for m in architecture.modules}
    experts = architecture.config.experts
    count = 0 if experts is None else experts.count
    plain = FAMILIES[
        architecture.family.model_type
    ]  # with its own prefix, even within a multimodal model
    renamed = _matching(checkpoint, plain, plain.aliases, axes=2)
    scales = {
        name + suffix: name
        for name in stacks if checkpoint.tensors[name].dtype in SCALED_DTYPES for suffix in SCALE_SUFFIXES
    }  # fmt: skip
    beside = {path + _BIASES: roles for path, roles in plain.stacks.items()}
    biases = _matching(checkpoint, plain, beside, axes=2) if architecture.config.mlp_bias else {}
    tensors: dict[str, StoredTensor] = {}
    turned: set[str] = set()
    for name, tensor in checkpoint.tensors.items():
        parts: Iterable[StoredTensor] = (tensor,)
        if (found := stacks.get(scales.get(name, name), biases.get(name))) is not None:
            layer, roles = found
            if (
                layer,
                f"0.{roles[0]}",
            ) in modules:  # neither a dense layer nor beyond the config's layers
                within = [[modules[layer, f"{n}.{role}"] for role in roles] for n in range(count)]
                if name in scales:
                    parts = _scales_apart(tensor, within)
                elif name in biases:
                    parts = _biases_apart(tensor, within)
                else:
                    transposed = plain.transposed_stacks and tensor.dtype not in FOUR_BIT_DTYPES
                    parts = list(_weights_apart(tensor, within, transposed=transposed))
                    turned.update(part.name for part in parts if transposed)
        elif (alias := renamed.get(name)) is not None:
            layer, roles = alias
            if (module := modules.get((layer, roles[0]))) is not None:
                parts = (tensor._replace(name=module.path + _SUFFIX),)
        for part in parts:
            if part.name in tensors:
                raise DuplicateTensorError("is both in a stack of experts and a separate tensor", file=part.file,
                                           tensor=part.name)  # fmt: skip
            tensors[part.name] = part
    return replace(checkpoint, tensors=tensors, transposed=frozenset(turned))


def _weights_apart(
    stack: StoredTensor, experts: list[list[Module]], *, transposed: bool
) -> Iterator[StoredTensor]:
    """Split a stack expert by expert, in file order; transposed ones have one matrix per expert."""
    rows, columns = sum(m.shape[0] for m in experts[0]), experts[0][0].shape[1]
    expected = (len(experts), *((columns, rows) if transposed else (rows, columns)))
    if stack.shape != expected:
        raise shape_error(stack, expected, stack.shape)
    offset, elements = stack.offset, max(prod(expected), 1)
    for modules in experts:
        for module in modules:
            nbytes = prod(module.shape) * stack.nbytes // elements
            shape = module.shape[::-1] if transposed else module.shape
            yield StoredTensor(module.path + _SUFFIX, stack.dtype, shape, stack.file, offset, nbytes)  # fmt: skip
            offset += nbytes


def _biases_apart(stack: StoredTensor, experts: list[list[Module]]) -> Iterator[StoredTensor]:
    """Split the biases of a stack, ``[experts, out]``."""
    expected = (len(experts), sum(m.shape[0] for m in experts[0]))
    if stack.shape != expected:
        raise shape_error(stack, expected, stack.shape)
    offset, item = stack.offset, stack.nbytes // max(prod(expected), 1)
    for module in (module for modules in experts for module in modules):
        nbytes = module.shape[0] * item
        yield StoredTensor(f"{module.path}.{BIAS}", stack.dtype, module.shape[:1], stack.file, offset, nbytes)  # fmt: skip
        offset += nbytes


def _scales_apart(scales: StoredTensor, experts: list[list[Module]]) -> Iterator[StoredTensor]:
    """Split the scales of a stack: those of rows and blocks along with their rows; the scale of a whole matrix applies to each part."""
    total = sum(m.shape[0] for m in experts[0])
    down, across = (*scales.shape[1:], 1, 1)[:2]
    fits = scales.shape[0] == len(experts) and prod(scales.shape) == len(experts) * down * across
    if not fits or (down > 1 and any(down * m.shape[0] % total for m in experts[0])):
        raise CompanionError("the scales of a stack of experts cannot be split", file=scales.file,
                             tensor=scales.name, found=list(scales.shape))  # fmt: skip
    suffix = next(s for s in SCALE_SUFFIXES if scales.name.endswith(s))
    item = scales.nbytes // max(prod(scales.shape), 1)
    for number, modules in enumerate(experts):
        offset = scales.offset + number * down * across * item
        for module in modules:
            rows = down * module.shape[0] // total if down > 1 else 1
            nbytes = rows * across * item
            name = module.path + _SUFFIX + suffix
            yield StoredTensor(name, scales.dtype, (rows, across), scales.file, offset, nbytes)
            offset += nbytes if down > 1 else 0
