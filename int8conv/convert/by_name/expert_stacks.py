"""Stacks of experts in checkpoints of any family: which tensors they are, and how their matrices are oriented."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ...formats.int8.names import KINDS, WEIGHT
from ...formats.safetensors.stored import StoredTensor
from ...formats.source.checkpoint import Checkpoint

_STACK: Final = re.compile(r"(^|\.)(experts|block_sparse_moe|moe)(\.|$)")
_TRANSPOSED: Final = {"gpt_oss", "llama4", "llama4_text"}
"""Families that store ``[experts, in, out]`` although the shape does not show it."""
_TO_HIDDEN: Final = re.compile(r"down|output|w2|fc2|c_proj|wo$")
"""Names of the matrices whose output is the hidden state; for all others the hidden state is the input."""
_COUNTS: Final = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_layer",
)  # fmt: skip
_WIDTHS: Final = ("hidden_size", "d_model", "n_embd", "model_dim")


def as_stack(checkpoint: Checkpoint, tensor: StoredTensor) -> tuple[StoredTensor, bool] | None:
    """A tensor as ``[experts, ., .]``, and whether its matrices are stored ``[in, out]``; None if it is not a stack or the
    orientation is ambiguous.

    A stack ``P`` does not count if a tensor ``P.0.weight`` exists, the name that its first matrix would need.
    """
    path = tensor.name.removesuffix(f".{WEIGHT}")
    if _STACK.search(path) is None:
        return None
    stack = _three_axes(checkpoint.config, tensor, path)
    if stack is None or any(f"{path}.0.{kind}" in checkpoint.tensors for kind in KINDS):
        return None
    transposed = _is_transposed(checkpoint, stack, path)
    return None if transposed is None else (stack, transposed)


def _three_axes(config: Mapping[str, Any], tensor: StoredTensor, path: str) -> StoredTensor | None:
    """DBRX concatenates its experts along the rows of one matrix, whose name does not end in ``weight``."""
    if len(tensor.shape) == 3:
        return tensor
    count = next(_sizes(config, _COUNTS), 0)
    if len(tensor.shape) != 2 or path != tensor.name or count < 2 or tensor.shape[0] % count:
        return None
    return tensor._replace(shape=(count, tensor.shape[0] // count, tensor.shape[1]))


def _is_transposed(checkpoint: Checkpoint, stack: StoredTensor, path: str) -> bool | None:
    """Decided by the side that has the hidden size; for square matrices by another stack of the same experts."""
    hidden = next(_sizes(checkpoint.config, _WIDTHS), None)
    found = _by_shape(stack.shape, path, hidden)
    if found is not None or stack.shape[1] != stack.shape[2]:
        return found
    parent, _, _ = path.rpartition(".")
    for name in _siblings(checkpoint, parent):
        sibling = _three_axes(checkpoint.config, checkpoint.tensors[name], name)
        if sibling is None or sibling.shape[0] != stack.shape[0]:
            continue
        found = _by_shape(sibling.shape, name.removesuffix(f".{WEIGHT}"), hidden)
        if found is not None:
            return found
    return True if str(checkpoint.config.get("model_type")) in _TRANSPOSED else None


def _by_shape(shape: tuple[int, ...], path: str, hidden: int | None) -> bool | None:
    _, rows, columns = shape
    if hidden not in (rows, columns) or rows == columns:
        return None
    to_hidden = bool(_TO_HIDDEN.search(path.rpartition(".")[2]))
    return (rows == hidden) != to_hidden


def _siblings(checkpoint: Checkpoint, parent: str) -> Iterator[str]:
    """Names directly below a module, without the suffix of a weight."""
    for name in checkpoint.tensors:
        if name.removesuffix(f".{WEIGHT}").rpartition(".")[0] == parent:
            yield name


def _sizes(config: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[int]:
    """Values of keys in the config, or in its sections for wrapped models."""
    text = config.get("text_config")
    sections = [text if isinstance(text, dict) else config]
    sections += [s for s in (sections[0].get("ffn_config"),) if isinstance(s, dict)]
    for section in sections:
        for key in keys:
            if type(value := section.get(key)) is int:
                yield value
