"""The layout planner: which tensor goes into which shard at which offset (SPEC.md section 4).

A *run* is a list of tensors with no bytes between them, so that a fused matrix is one view. A *unit* is a list of runs that
stay in one shard: a group of linears, or any other single tensor. Units are placed in the given order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ..safetensors.dtypes import ITEM_BYTES, byte_count
from ..safetensors.header import TensorInfo, build_header
from .names import METADATA, PADDING_PREFIX, shard_name

PAYLOAD_ALIGNMENT = 4096
RUN_ALIGNMENT = 256

PLAIN_METADATA: Final = {"format": "pt"}
"""``__metadata__`` of checkpoints for other tools: transformers wants to know the framework."""
_PLAIN_ALIGNMENT: Final = 8


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be placed."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return byte_count(self.dtype, self.shape)


Run = tuple[TensorSpec, ...]
Unit = tuple[Run, ...]


@dataclass(frozen=True)
class ShardLayout:
    """One planned file: the bytes of its header, and where each tensor goes."""

    name: str
    header: bytes
    tensors: tuple[TensorInfo, ...]
    """Including padding; offsets are relative to the payload, which starts at ``len(header)``."""

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + (self.tensors[-1].end if self.tensors else 0)


def plan_layout(units: Sequence[Unit], *, max_shard_bytes: int) -> list[ShardLayout]:
    """Place units into shards of at most ``max_shard_bytes`` of payload (a larger unit gets a shard of its own)."""
    shards = list(_split(units, max_shard_bytes))
    layouts = []
    for number, shard in enumerate(shards, start=1):
        tensors = _place([run for unit in shard for run in unit])
        header = build_header(tensors, METADATA, alignment=PAYLOAD_ALIGNMENT)
        layouts.append(ShardLayout(shard_name(number, len(shards)), header, tuple(tensors)))
    return layouts


def plan_plain_layout(tensors: Sequence[TensorSpec], *, max_shard_bytes: int) -> list[ShardLayout]:
    """Place tensors into shards for other tools: without padding, which they would take for weights.

    Within a shard those with the largest elements come first, so that each starts at a multiple of its element's size.
    """
    shards = list(_split([((tensor,),) for tensor in tensors], max_shard_bytes))
    layouts = []
    for number, shard in enumerate(shards, start=1):
        placed: list[TensorInfo] = []
        for t in sorted((unit[0][0] for unit in shard), key=lambda t: -ITEM_BYTES[t.dtype]):
            begin = placed[-1].end if placed else 0
            placed.append(TensorInfo(t.name, t.dtype, t.shape, begin, begin + t.nbytes))
        header = build_header(placed, PLAIN_METADATA, alignment=_PLAIN_ALIGNMENT)
        layouts.append(ShardLayout(shard_name(number, len(shards)), header, tuple(placed)))
    return layouts


def _split(units: Sequence[Unit], max_shard_bytes: int) -> Iterator[list[Unit]]:
    shard: list[Unit] = []
    used = 0
    for unit in units:
        size = sum(_round_up(sum(t.nbytes for t in run)) for run in unit)
        if shard and used + size > max_shard_bytes:
            yield shard
            shard, used = [], 0
        shard.append(unit)
        used += size
    yield shard


def _place(runs: Sequence[Run]) -> list[TensorInfo]:
    placed: list[TensorInfo] = []
    position = paddings = 0
    for run in runs:
        start = _round_up(position)
        if start != position:
            name = f"{PADDING_PREFIX}{paddings}"
            placed.append(TensorInfo(name, "U8", (start - position,), position, start))
            position, paddings = start, paddings + 1
        for t in run:
            placed.append(TensorInfo(t.name, t.dtype, t.shape, position, position + t.nbytes))
            position += t.nbytes
    return placed


def _round_up(size: int) -> int:
    return -(-size // RUN_ALIGNMENT) * RUN_ALIGNMENT
