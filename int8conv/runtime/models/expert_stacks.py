"""Experts that a checkpoint of a known family stores as stacks, taken apart into the family's own tensors.

transformers 5 holds the experts of a layer as two tensors, ``gate_up_proj [experts, 2 * inner, hidden]`` (gate above up) and
``down_proj [experts, hidden, inner]``, and saves them so if it is asked to; MLX stacks each of the three. A matrix in a stack is a
run of its bytes, so a name, a shape and an offset make a tensor of it: nothing is copied, and all that reads checkpoints
sees them as the hub has them. Which way the matrices lie is the family's to say, also where they are square.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Final

from ...errors import CompanionError, DuplicateTensorError, UnsupportedModelError
from ...formats.int8.names import WEIGHT
from ...formats.safetensors.dtypes import FP8_DTYPES
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.checkpoint import CONFIG_FILE, Checkpoint
from ...formats.source.fp8 import SCALE_SUFFIXES
from .architecture import Architecture, Module, read_architecture, shape_error
from .families import FAMILIES, Family

_SUFFIX: Final = f".{WEIGHT}"


def take_apart(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a tensor for each expert, under the names of its family; the same one if nothing in it is stacked.

    Raises:
        ShapeError: a stack is not of the shape that the config implies.
        DuplicateTensorError: an expert is there on its own too.
        CompanionError: FP8 scales of a stack cannot be taken apart with it.
        JsonFileError: the config is malformed.
    """
    model_type = checkpoint.config.get("model_type")
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
    """Tensors of so many axes whose path one of the patterns fits: the layer, and what the pattern stands for."""
    prefix = re.escape(family.base_prefix)
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
    renamed = _matching(checkpoint, architecture.family, architecture.family.aliases, axes=2)
    scales = {
        name + suffix: name
        for name in stacks if checkpoint.tensors[name].dtype in FP8_DTYPES for suffix in SCALE_SUFFIXES
    }  # fmt: skip
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        parts: Iterable[StoredTensor] = (tensor,)
        if (found := stacks.get(scales.get(name, name))) is not None:
            layer, roles = found
            if (layer, f"0.{roles[0]}") in modules:  # not a dense layer, or one beyond the config's
                within = [[modules[layer, f"{n}.{role}"] for role in roles] for n in range(count)]
                split = _scales_apart if name in scales else _weights_apart
                parts = split(tensor, within)
        elif (alias := renamed.get(name)) is not None:
            layer, roles = alias
            if (module := modules.get((layer, roles[0]))) is not None:
                parts = (tensor._replace(name=module.path + _SUFFIX),)
        for part in parts:
            if part.name in tensors:
                raise DuplicateTensorError("is in a stack of experts, and on its own too", file=part.file,
                                           tensor=part.name)  # fmt: skip
            tensors[part.name] = part
    return replace(checkpoint, tensors=tensors)


def _weights_apart(stack: StoredTensor, experts: list[list[Module]]) -> Iterator[StoredTensor]:
    """Expert by expert, in the order of the bytes."""
    rows = sum(m.shape[0] for m in experts[0])
    expected = (len(experts), rows, experts[0][0].shape[1])
    if stack.shape != expected:
        raise shape_error(stack, expected, stack.shape)
    offset, item = stack.offset, stack.nbytes // max(prod(expected), 1)
    for modules in experts:
        for module in modules:
            nbytes = prod(module.shape) * item
            yield StoredTensor(module.path + _SUFFIX, stack.dtype, module.shape, stack.file, offset, nbytes)  # fmt: skip
            offset += nbytes


def _scales_apart(scales: StoredTensor, experts: list[list[Module]]) -> Iterator[StoredTensor]:
    """Those of rows and blocks with their rows; one of a whole stack's matrix for each that is in it."""
    total = sum(m.shape[0] for m in experts[0])
    down, across = (*scales.shape[1:], 1, 1)[:2]
    fits = scales.shape[0] == len(experts) and prod(scales.shape) == len(experts) * down * across
    if not fits or (down > 1 and any(down * m.shape[0] % total for m in experts[0])):
        raise CompanionError("scales of a stack of experts that cannot be taken apart", file=scales.file,
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
