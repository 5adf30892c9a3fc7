"""Check a converted folder's shards against the layout of SPEC.md section 4."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ...errors import LayoutError
from ..safetensors.header import Header
from ..safetensors.stored import StoredTensor
from ..source.checkpoint import Checkpoint
from .layout import PAYLOAD_ALIGNMENT, RUN_ALIGNMENT
from .manifest import InputGroup
from .names import KINDS, PADDING_PREFIX, is_padding


def check_layout(checkpoint: Checkpoint, groups: Sequence[InputGroup]) -> None:
    """Raise LayoutError if a payload or run is not aligned, a group's tensors are not adjacent, or padding is misplaced."""
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
    for shard, header in checkpoint.headers.items():
        _check_padding(header, checkpoint.folder / shard)


def _check_padding(header: Header, file: Path) -> None:
    """Check that padding fills the bytes up to an aligned run and is numbered; ``verify`` checks its bytes."""
    tensors = list(header.tensors.values())
    paddings = [(place, t) for place, t in enumerate(tensors) if is_padding(t.name)]
    for number, (place, t) in enumerate(paddings):
        problem = None
        if t.name != f"{PADDING_PREFIX}{number}":
            problem = f"expected the name '{PADDING_PREFIX}{number}'"
        elif t.dtype != "U8" or len(t.shape) != 1 or not 0 < t.nbytes < RUN_ALIGNMENT:
            problem = f"expected U8 [n] with n from 1 to {RUN_ALIGNMENT - 1}"
        elif t.end % RUN_ALIGNMENT or t.begin % RUN_ALIGNMENT == 0 or place + 1 == len(tensors):
            problem = "expected to fill the bytes before an aligned tensor"
        if problem:
            raise LayoutError(f"malformed padding: {problem}", file=file, tensor=t.name,
                              found=f"{t.dtype} {list(t.shape)} at {t.begin}")  # fmt: skip


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
            f"does not directly follow '{before.name}', which shares its input",
            file=tensor.file, tensor=tensor.name,
            expected=f"offset {end}", found=tensor.offset,
        )  # fmt: skip
    if tensor.dtype != before.dtype:
        raise LayoutError(
            f"does not form one matrix with '{before.name}', which shares its input",
            file=tensor.file, tensor=tensor.name, expected=before.dtype, found=tensor.dtype,
        )  # fmt: skip
