"""The selection for a family that the runtime does not know: by names and shapes alone.

A matrix in a numbered block becomes int8 unless its name says embedding, norm, router or the like; a stack of experts
``[experts, ., .]`` becomes one linear an expert. Nothing is calibrated: see ``data_free``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from ..errors import UnsupportedModelError
from ..formats.int8.names import BIAS, WEIGHT
from ..formats.safetensors.dtypes import FLOAT_DTYPES, FP8_DTYPES
from ..formats.safetensors.stored import StoredTensor
from ..formats.source.checkpoint import CONFIG_FILE, Checkpoint
from ..formats.source.matrix import find_matrix
from .outliers.selection import Group, Kept, Linear, Patterns, Selection, keep, matches, why_skipped

SMALLEST_SIDE: Final = 32
"""Matrices with a shorter side stay: routers, low-rank adapters, gates of a few heads."""

_NUMBERED: Final = re.compile(r"(^|\.)\d+\.")
_NOT_A_LINEAR: Final = re.compile(
    r"(^|[._])(emb|embed|embedding|embeddings|embed_\w+|wte|wpe|norm\w*|\w*norm|ln|ln_\w+|router|gate|wg|"
    r"relative\w*|rotary\w*|conv\w*|lora_\w+|classifier|score)\.weight$"
)
_BY_SIBLINGS: Final = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)
"""Last parts of paths of linears that share an input, in self-attention and gated FFNs."""
_CROSS: Final = re.compile(r"cross|encoder_attn|EncDec", re.IGNORECASE)

_CONV1D_FAMILIES: Final = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_CONV1D_NAMES: Final = {"c_attn", "c_proj", "c_fc", "q_attn"}
"""GPT-2's ``Conv1D`` stores ``[in, out]``."""
_STACK: Final = re.compile(r"(^|\.)(experts|block_sparse_moe|moe)(\.|$)")
_TRANSPOSED_STACKS: Final = {"gpt_oss", "llama4", "llama4_text"}
"""Families that store ``[experts, in, out]``, for square matrices; others show it by their shape."""
_TO_HIDDEN: Final = re.compile(r"down|output|w2|fc2|c_proj|wo$")
"""Names of the matrices whose output is the hidden state; of all others it is the input."""


def select_by_names(checkpoint: Checkpoint, patterns: Patterns) -> Selection:
    """The selection of an unknown family.

    Raises:
        ArgumentError: a pattern matches nothing.
        UnsupportedModelError: no tensor looks like a linear.
        UnsupportedDtypeError, CompanionError: a tensor that cannot be read.
    """
    skipped: dict[str, str] = {}
    linears: dict[str, tuple[Linear, ...]] = {}
    kept: dict[str, Kept] = {}
    candidates: list[str] = []
    others: list[str] = []
    tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: _order(tensor.name))
    for tensor in tensors:
        if (reason := why_skipped(checkpoint, tensor)) is not None:
            skipped[tensor.name] = reason
            continue
        path = tensor.name.removesuffix(f".{WEIGHT}")
        found = _linears(checkpoint, tensor, path)
        by_default = found and _is_linear(tensor)
        if found:
            (candidates if by_default else others).append(path)
        wanted = (
            not matches(patterns.keep, path) if by_default else matches(patterns.quantize, path)
        )
        if found and wanted:
            linears[path] = found
        else:
            kept[tensor.name] = keep(checkpoint, tensor, _kind(tensor, bool(by_default)))
    patterns.check(candidates, others)
    if not linears:
        raise UnsupportedModelError(
            "no linear found by names and shapes", file=checkpoint.folder / CONFIG_FILE,
            expected="matrices named '*.weight' in numbered blocks",
        )  # fmt: skip
    items = list(_grouped(linears))
    biases = {x.bias.name for group in items for x in group.linears if x.bias is not None}
    rest = [k for name, k in kept.items() if name not in biases]
    everything: list[Group | Kept] = [*items, *rest]
    ordered = sorted(everything, key=lambda item: _order(_name(item)))
    return Selection(tuple(ordered), skipped)


def _linears(checkpoint: Checkpoint, tensor: StoredTensor, path: str) -> tuple[Linear, ...]:
    """The linears that a tensor could be: one for a matrix, one an expert for a stack, none for anything else."""
    if len(tensor.shape) == 2 and tensor.name.endswith(f".{WEIGHT}"):
        matrix = find_matrix(checkpoint, tensor, transposed=_is_conv1d(checkpoint.config, path))
        bias = checkpoint.tensors.get(f"{path}.{BIAS}")
        fits = bias is not None and bias.dtype in FLOAT_DTYPES and bias.shape == matrix.shape[:1]
        return (Linear(path, matrix, bias if fits else None),)
    if len(tensor.shape) != 3 or not _STACK.search(path):
        return ()
    turned = _stack_is_transposed(checkpoint.config, tensor, path)
    if turned is None:
        return ()
    return tuple(
        Linear(f"{path}.{part}", find_matrix(checkpoint, tensor, part=part, transposed=turned))
        for part in range(tensor.shape[0])
    )


def _is_linear(tensor: StoredTensor) -> bool:
    return (
        tensor.dtype in (*FLOAT_DTYPES, *FP8_DTYPES)
        and _NUMBERED.search(tensor.name) is not None
        and _NOT_A_LINEAR.search(tensor.name) is None
        and min(tensor.shape[-2:]) >= SMALLEST_SIDE
    )


def _is_conv1d(config: dict[str, Any], path: str) -> bool:
    return (
        str(config.get("model_type")) in _CONV1D_FAMILIES
        and path.rpartition(".")[2] in _CONV1D_NAMES
    )


def _stack_is_transposed(config: dict[str, Any], tensor: StoredTensor, path: str) -> bool | None:
    """Whether a stack of experts is stored ``[experts, in, out]``: the side of hidden_size tells. None: it does not."""
    section = config.get("text_config")
    hidden = (section if isinstance(section, dict) else config).get("hidden_size")
    rows, columns = tensor.shape[1:]
    if hidden not in (rows, columns):
        return None
    if rows == columns:
        return True if str(config.get("model_type")) in _TRANSPOSED_STACKS else None
    hidden_first = bool(rows == hidden)
    return hidden_first != bool(_TO_HIDDEN.search(path.rpartition(".")[2]))


def _grouped(linears: dict[str, tuple[Linear, ...]]) -> Iterator[Group]:
    """Stacks are groups; so are siblings that share an input and can be one matrix."""
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


def _kind(tensor: StoredTensor, looks_linear: bool) -> str:
    if looks_linear:
        return "linear"
    return "small" if len(tensor.shape) < 2 else "matches no rule"


def _name(item: Group | Kept) -> str:
    return item.name if isinstance(item, Kept) else item.linears[0].weight.name


def _order(name: str) -> tuple[Any, ...]:
    """Embeddings, numbered blocks by number, the rest."""
    numbered = _NUMBERED.search(name) is not None
    place = 0 if re.search(r"emb|wte|wpe", name) and not numbered else 1 if numbered else 2
    return place, [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"\.|\[|\]", name)]
