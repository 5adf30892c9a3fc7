"""Hold a converted folder's shards to the layout of SPEC.md section 4."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..errors import LayoutError
from .checkpoint import Checkpoint, StoredTensor
from .layout import PAYLOAD_ALIGNMENT, RUN_ALIGNMENT
from .manifest import InputGroup
from .names import KINDS


def check_layout(checkpoint: Checkpoint, groups: Sequence[InputGroup]) -> None:
    """Raise LayoutError where a payload or a run is not aligned, or a group's tensors are not adjacent."""
    for shard, header in checkpoint.headers.items():
        if header.payload_offset % PAYLOAD_ALIGNMENT:
            raise LayoutError(
                "payload is not aligned", file=checkpoint.folder / shard,
                expected=f"a multiple of {PAYLOAD_ALIGNMENT}", found=header.payload_offset,
            )  # fmt: skip
    followers = set()
    for group in groups:
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


def _check_adjacent(before: StoredTensor, tensor: StoredTensor) -> None:
    end = before.offset + before.nbytes
    if tensor.file != before.file or tensor.offset != end:
        raise LayoutError(
            f"does not follow '{before.name}', which shares its input",
            file=tensor.file, tensor=tensor.name,
            expected=f"offset {end} in {before.file.name}",
            found=f"{tensor.offset} in {tensor.file.name}",
        )  # fmt: skip
