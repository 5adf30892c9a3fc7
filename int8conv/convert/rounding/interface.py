"""What a conversion needs of whatever turns weights into codes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...formats.safetensors.buffers import Buffers
from ...runtime.devices import find_torch_device
from .float16_bits import Bits
from .quantize import Codes, QuantizedRows, RowQuantizer
from .sample import RowSample


class Quantizer(Protocol):
    """Turns blocks of rows into codes and scales."""

    def quantize(self, bits: Bits, first: int = 0) -> QuantizedRows:
        """See ``quantize.RowQuantizer``."""


NewQuantizer = Callable[[str, npt.NDArray[np.int32], Buffers, RowSample], Quantizer]
"""Called per tensor with dtype, outlier columns, memory to work in, and the error sample."""


class CodeSource(Protocol):
    """Chooses the codes of some linears otherwise than by rounding each weight alone."""

    paths: frozenset[str]

    def codes(self, pending: Collection[str]) -> Iterator[tuple[str, Codes]]:
        """Path and codes int8 ``[out, in]`` of each pending linear, in an order of its own."""


def quantizer_for(device: str) -> NewQuantizer:
    """The quantizer of a device."""
    if device == "cpu":
        return RowQuantizer
    from .device import DeviceQuantizer  # needs torch

    place = find_torch_device(device)
    return lambda dtype, columns, buffers, sample: DeviceQuantizer(dtype, columns, place, sample)
