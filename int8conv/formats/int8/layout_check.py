"""Hold a converted folder's shards to the layout of SPEC.md section 4."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ...errors import LayoutError
from ..safetensors.stored import StoredTensor
from ..source.checkpoint import Checkpoint
from .layout import PAYLOAD_ALIGNMENT, RUN_ALIGNMENT
from .manifest import InputGroup
from .names import KINDS


def check_layout(checkpoint: Checkpoint, groups: Sequence[InputGroup]) -> None:
    """Raise LayoutError where a payload or a run is not aligned, or a group's tensors do not stand together."""
    for shard, header in checkpoint.headers.items():
        if header.payload_offset % PAYLOAD_ALIGNMENT:
            raise LayoutError(
                "payload is not aligned", file=checkpoint.folder / shard,
                expected=f"a multiple of {PAYLOAD_ALIGNMENT}", found=header.payload_offset,
            )  # fmt: skip
    followers = set()
    for group in groups:
        _check_one_shard(checkpoint, group)
        for kind in KINDS:
            names = (f"{path}.{kind}" for path in group.linears)
            run = [checkpoint.tensors[name] for name in names if name in checkpoint.tensors]
            for before, tensor in pairwise(run):
                _check_adjacent(before, tensor)
                followers.add(tensor.name)
    for tensor in checkpoint.tensors.values():
        if tensor.name not in followers and tensor.offset % RUN_ALIGNMENT:
            raise LayoutError(
                "tensor is not aligned", file=tensor.file, tensor=tensor.name,
                expected=f"offset a multiple of {RUN_ALIGNMENT}", found=tensor.offset,
            )  # fmt: skip


def _check_one_shard(checkpoint: Checkpoint, group: InputGroup) -> None:
    names = (f"{path}.{kind}" for kind in KINDS for path in group.linears)
    first, *others = (checkpoint.tensors[name] for name in names if name in checkpoint.tensors)
    for tensor in others:
        if tensor.file != first.file:
            raise LayoutError(
                f"is in another shard than '{first.name}', which shares its input",
                file=tensor.file, tensor=tensor.name, expected=first.file.name,
            )  # fmt: skip


def _check_adjacent(before: StoredTensor, tensor: StoredTensor) -> None:
    end = before.offset + before.nbytes
    if tensor.offset != end:
        raise LayoutError(
            f"does not follow '{before.name}', which shares its input",
            file=tensor.file, tensor=tensor.name,
            expected=f"offset {end}", found=tensor.offset,
        )  # fmt: skip
    if tensor.dtype != before.dtype:
        raise LayoutError(
            f"is not one matrix with '{before.name}', which shares its input",
            file=tensor.file, tensor=tensor.name, expected=before.dtype, found=tensor.dtype,
        )  # fmt: skip
