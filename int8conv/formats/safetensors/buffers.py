"""A worker's memory for blocks, allocated once and reused for every tensor."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt


class Buffers:
    """Arrays by name; each grows to the largest size requested."""

    def __init__(self) -> None:
        self._memory: dict[str, npt.NDArray[np.uint8]] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An uninitialised array of that shape, valid until the same name is taken again."""
        dtype = np.dtype(dtype)
        needed = prod(shape) * dtype.itemsize
        if name not in self._memory or len(self._memory[name]) < needed:
            self._memory[name] = np.empty(needed, np.uint8)
        return self._memory[name][:needed].view(dtype).reshape(shape)
