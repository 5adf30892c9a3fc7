"""The selection for a family unknown to the runtime, by names and shapes alone.

A matrix in a numbered block becomes int8 unless its name says embedding, norm, router or the like; a stack of experts
``[experts, ., .]`` becomes one linear per expert. Nothing is calibrated: see ``data_free``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ...errors import ArgumentError, UnsupportedModelError
from ...formats.int8.names import BIAS, WEIGHT
from ...formats.safetensors.dtypes import FLOAT_DTYPES, SCALED_DTYPES
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.checkpoint import CONFIG_FILE, Checkpoint
from ...formats.source.matrix import find_matrix
from ..outliers.selection import (
    Group,
    Kept,
    Linear,
    Patterns,
    Selection,
    keep,
    matches,
    why_skipped,
)
from .expert_stacks import as_stack
from .linear_names import is_kept_by_name, is_numbered, is_vision_or_audio

SMALLEST_SIDE: Final = 32
"""Matrices with a shorter side stay in 16 bits: routers, low-rank adapters, gates with a few heads."""
_NAMED_FRACTION: Final = 0.01
"""Fraction of all bytes from which on matrices that stay in 16 bits are named in a note."""

_BY_SIBLINGS: Final = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)
"""Last path components of linears that share an input, in self-attention and gated FFNs."""
_CROSS: Final = re.compile(r"cross|encoder_attn|EncDec", re.IGNORECASE)

_CONV1D_FAMILIES: Final = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_CONV1D_NAMES: Final = {"c_attn", "c_proj", "c_fc", "q_attn"}
"""GPT-2's ``Conv1D`` stores ``[in, out]``."""
_ORDINAL: Final = re.compile("[0-9]{1,9}")
_NUMBER: Final = re.compile(r"\d+")
_PERCEPTION: Final = "vision or audio"


def select_by_names(checkpoint: Checkpoint, patterns: Patterns) -> Selection:
    """The selection of an unknown family.

    Raises:
        ArgumentError: a pattern matches nothing.
        UnsupportedModelError: no tensor looks like a linear.
        UnsupportedDtypeError, CompanionError: a tensor cannot be read.
    """
    if patterns.head != "16bit":
        raise ArgumentError("head", expected="16bit: the family is unknown, and so is its head", found=patterns.head,
                            hint="name it with --quantize")  # fmt: skip
    skipped: dict[str, str] = {}
    found: dict[str, tuple[Linear, ...]] = {}
    kinds: dict[str, str] = {}
    rest: list[StoredTensor] = []
    tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: _order(tensor.name))
    for tensor in tensors:
        if (reason := why_skipped(checkpoint, tensor)) is not None:
            skipped[tensor.name] = reason
            continue
        path = tensor.name.removesuffix(f".{WEIGHT}")
        if linears := _linears(checkpoint, tensor, path):
            found[path] = linears
            kinds[path] = _kind(checkpoint, tensor, path)
        else:
            rest.append(tensor)
    if "linear" not in kinds.values():  # the whole model is a vision tower
        kinds = {p: "linear" if kind == _PERCEPTION else kind for p, kind in kinds.items()}
    chosen = _chosen(kinds, patterns)
    if not chosen:
        raise UnsupportedModelError(
            "no linear found by names and shapes", file=checkpoint.folder / CONFIG_FILE,
            expected="matrices named '*.weight' in numbered blocks",
        )  # fmt: skip
    items = list(_grouped({path: found[path] for path in found if path in chosen}))
    biases = {x.bias.name for group in items for x in group.linears if x.bias is not None}
    others = [found[path][0].weight.stored for path in found if path not in chosen]
    kept = [
        keep(checkpoint, checkpoint.tensors[t.name], kinds.get(t.name.removesuffix(f".{WEIGHT}"), _small(t)))
        for t in (*others, *rest) if t.name not in biases
    ]  # fmt: skip
    everything: list[Group | Kept] = [*items, *kept]
    ordered = sorted(everything, key=lambda item: _order(_name(item)))
    return Selection(tuple(ordered), skipped, tuple(_notes(checkpoint, kept)))


def _chosen(kinds: Mapping[str, str], patterns: Patterns) -> set[str]:
    """Paths of what becomes int8: all linears except those to keep, and other matrices that the user names."""
    candidates = [path for path, kind in kinds.items() if kind == "linear"]
    others = [path for path, kind in kinds.items() if kind != "linear"]
    patterns.check(candidates, others)
    chosen = {path for path in candidates if not matches(patterns.keep, path)}
    return chosen | {path for path in others if matches(patterns.quantize, path)}


def _linears(checkpoint: Checkpoint, tensor: StoredTensor, path: str) -> tuple[Linear, ...]:
    """The linears that a tensor could be: one for a matrix, one per expert for a stack, none for anything else."""
    if tensor.dtype not in SCALED_DTYPES and not tensor.dtype.startswith(("F", "BF")):
        return ()
    if len(tensor.shape) == 2 and tensor.name.endswith(f".{WEIGHT}"):
        matrix = find_matrix(checkpoint, tensor, transposed=is_conv1d(checkpoint.config, path))
        bias = checkpoint.tensors.get(f"{path}.{BIAS}")
        if bias is None:
            return (Linear(path, matrix),)
        fits = bias.dtype in FLOAT_DTYPES and bias.shape == matrix.shape[:1]
        return (Linear(path, matrix, bias),) if fits else ()
    stack = as_stack(checkpoint, tensor)
    if stack is None or not stack[0].nbytes:  # an empty stack may claim any number of experts
        return ()
    stored, turned = stack
    return tuple(
        Linear(f"{path}.{part}", find_matrix(checkpoint, stored, part=part, transposed=turned))
        for part in range(stored.shape[0])
    )


def _kind(checkpoint: Checkpoint, tensor: StoredTensor, path: str) -> str:
    """``"linear"``, or why a matrix stays in 16 bits."""
    if min(tensor.shape[-2:]) < SMALLEST_SIDE:
        return "small"
    parent, _, last = path.rpartition(".")
    up = checkpoint.tensors.get(f"{parent}.up.{WEIGHT}")
    gated = last == "gate" and up is not None and up.shape == tensor.shape
    if not is_numbered(tensor.name) or is_kept_by_name(path, gated=gated):
        return "matches no rule"
    return _PERCEPTION if is_vision_or_audio(path) else "linear"


def _small(tensor: StoredTensor) -> str:
    return "small" if len(tensor.shape) < 2 else "matches no rule"


def _notes(checkpoint: Checkpoint, kept: Sequence[Kept]) -> Iterator[str]:
    """Notes on large parts that stay in 16 bits: vision and audio, and matrices in blocks that no rule took for linears."""
    total = checkpoint.nbytes or 1
    perception = sum(item.source.nbytes for item in kept if item.kind == _PERCEPTION)
    if perception:
        yield (
            f"vision, audio and projectors stay in 16 bits ({perception / total:.0%} of all bytes): use --quantize REGEX for int8"
        )
    large: Counter[str] = Counter()
    for item in kept:
        path = item.name.removesuffix(f".{WEIGHT}")
        sides = [size for size in item.source.shape if size >= SMALLEST_SIDE]
        known = item.kind == _PERCEPTION or is_kept_by_name(path) or not is_numbered(item.name)
        if len(sides) >= 2 and not known:
            large[_NUMBER.sub("*", item.name)] += item.source.nbytes
    for pattern, nbytes in large.items():
        if nbytes > _NAMED_FRACTION * total:
            yield f"{pattern} stays in 16 bits ({nbytes / total:.0%} of all bytes): by name and shape it may not be a linear"


def is_conv1d(config: dict[str, Any], path: str) -> bool:
    """Whether the family stores the weight of that linear as ``[in, out]``."""
    return (
        str(config.get("model_type")) in _CONV1D_FAMILIES
        and path.rpartition(".")[2] in _CONV1D_NAMES
    )


def _grouped(linears: dict[str, tuple[Linear, ...]]) -> Iterator[Group]:
    """Groups: each stack, and siblings that share an input and can form one matrix."""
    done: set[str] = set()
    for path, found in linears.items():
        if path in done:
            continue
        siblings = [linears[p][0] for p in _siblings(path) if len(linears.get(p, ())) == 1]
        group = tuple(siblings) if len(siblings) > 1 and _is_one_matrix(siblings) else found
        done |= {x.path for x in group}
        yield Group(group, "experts" if len(found) > 1 else "linear", path)


def _siblings(path: str) -> list[str]:
    parent, _, name = path.rpartition(".")
    if _CROSS.search(path):
        return []
    return [f"{parent}.{n}" for names in _BY_SIBLINGS if name in names for n in names]


def _is_one_matrix(linears: list[Linear]) -> bool:
    inputs = {(x.weight.shape[1], x.weight.dtype) for x in linears}
    return len(inputs) == 1 and len({x.bias and x.bias.dtype for x in linears}) == 1


def _name(item: Group | Kept) -> str:
    return item.name if isinstance(item, Kept) else item.linears[0].weight.name


def _order(name: str) -> tuple[Any, ...]:
    """Sort key: embeddings, numbered blocks by number, the rest."""
    numbered = is_numbered(name)
    place = 0 if re.search(r"emb|wte|wpe", name) and not numbered else 1 if numbered else 2
    return place, [
        (int(p), "") if _ORDINAL.fullmatch(p) else (-1, p) for p in re.split(r"\.|\[|\]", name)
    ]
