"""Launch configurations, chosen from ``configs.json`` by kernel, GPU and shape; there is no autotuning at run time.

The table has a list of rows for each kernel and GPU generation; the first row that fits the shape is used.
``max_tokens`` and ``max_out`` bound the rows of the activations and of the weight; the rest are the kernel's parameters.
Kernels that read int8 matrices have separate rows for numbers of channels that are not multiples of 16: the matrix rows are then
unaligned and read byte by byte, for which large tiles have too few registers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Final

from ...errors import ArgumentError

GENERATIONS: Final = (80, 89, 90, 100, 120)
"""Compute capabilities with rows in the table."""

_SAME_AS: Final = {86: 89, 87: 80, 88: 89, 101: 100, 103: 100, 110: 100, 121: 120}
_CONDITIONS: Final = ("max_tokens", "max_out")

Config = Mapping[str, int]


def generation(capability: int) -> int:
    """The GPU generation in the table to use for this one; unknown newer GPUs use the least demanding one.

    Raises:
        ArgumentError: the GPU is older than Ampere.
    """
    if capability < GENERATIONS[0]:
        raise ArgumentError("compute capability", expected="80 or more", found=capability)
    return capability if capability in GENERATIONS else _SAME_AS.get(capability, 89)


def choose(kernel: str, capability: int, *, tokens: int = 1, out: int = 1) -> Config:
    """The configuration of a kernel for a GPU and a shape, without the conditions of its row."""
    bounds = dict(zip(_CONDITIONS, (tokens, out), strict=True))
    for row in _table()[kernel][str(generation(capability))]:
        if all(size <= row.get(condition, size) for condition, size in bounds.items()):
            return {name: value for name, value in row.items() if name not in _CONDITIONS}
    raise AssertionError(f"configs.json: no row for {kernel}, {tokens} tokens, {out} rows")


def by_alignment(kernel: str, channels: int) -> str:
    """The table's name for a kernel that reads rows of ``channels`` bytes."""
    return kernel if channels % 16 == 0 else f"{kernel}_unaligned"


def shipped(kernel: str, capability: int) -> list[Config]:
    """All rows of a kernel for a GPU, with their conditions."""
    return list(_table()[kernel][str(generation(capability))])


def token_bounds(capability: int) -> set[int]:
    """Numbers of tokens (for attention: of sequences times heads) at which any kernel's configuration changes."""
    key = str(generation(capability))
    rows = [row for rows in _table().values() for row in rows.get(key, ())]
    names = ("max_tokens", "w8a16_tokens")
    return {row[name] for row in rows for name in names if name in row}


def with_tma(row: Config) -> Config:
    """A ``gemm`` row with operands loaded by the tensor memory accelerator (Hopper and newer)."""
    return {**row, "tma": 1}


def dumps(table: Mapping[str, Mapping[str, list[Config]]]) -> str:
    """The table in the format of its file: one row per line."""
    kernels = []
    for kernel, generations in table.items():
        parts = []
        for name, rows in generations.items():
            lines = ",\n".join(f"      {json.dumps(dict(row))}" for row in rows)
            parts.append(f'    "{name}": [\n{lines}\n    ]')
        kernels.append(f'  "{kernel}": {{\n' + ",\n".join(parts) + "\n  }")
    return "{\n" + ",\n".join(kernels) + "\n}\n"


@functools.cache
def _table() -> dict[str, dict[str, list[Config]]]:
    text = resources.files(__package__).joinpath("configs.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, list[Config]]] = json.loads(text)
    return table
