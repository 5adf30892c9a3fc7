"""Quantize blocks of rows with PyTorch on a GPU, to the same bytes as ``quantize.RowQuantizer``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...runtime.weights.mapping import from_bits
from .float16_bits import Bits
from .quantize import SMALLEST_SCALE, NonFiniteRowError, QuantizedRows
from .sample import RowSample


class DeviceQuantizer:
    """Quantizes blocks of rows on a device.

    Division and rounding are single IEEE operations there too, so every code and scale equals the CPU's.

    Args:
        dtype: F16, BF16 or F32.
        columns: outlier columns, int ``[k]``.
        device: where the arithmetic is done.
        sample: measures the quantization error.
    """

    def __init__(
        self,
        dtype: str,
        columns: npt.NDArray[np.int32],
        device: torch.device,
        sample: RowSample | None = None,
    ) -> None:
        self.dtype = dtype
        self.columns = columns
        self._device = device
        self._index = torch.from_numpy(columns.astype(np.int64)).to(device)
        self._sample = sample

    def quantize(self, bits: Bits, first: int = 0) -> QuantizedRows:
        """Quantize ``bits`` ``[rows, in]``; ``first`` is the number of its first row.

        Raises:
            NonFiniteRowError: a value is NaN or infinite.
        """
        outliers = bits[:, self.columns]
        wide = from_bits(bits, self.dtype).to(self._device).to(torch.float32, copy=True)
        _check_finite(wide)
        wide[:, self._index] = 0
        scale = row_scales(wide.abs())
        wide /= torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]
        codes = wide.round().to(torch.int8)
        result = QuantizedRows(_host(codes), _host(scale), outliers)
        if self._sample:
            rows = slice(-first % self._sample.step, None, self._sample.step)
            self._sample.add(_host(wide[rows]).copy(), result.codes, result.scale, first)
        return result


def row_scales(magnitudes: torch.Tensor) -> torch.Tensor:
    """Row scales float32 ``[rows]`` (SPEC.md section 1.1) of magnitudes ``[rows, in]``, which are zero in outlier columns."""
    largest = magnitudes.amax(1) if magnitudes.shape[1] else magnitudes.new_zeros(len(magnitudes))
    # divide by a tensor: on a GPU, PyTorch would multiply by the reciprocal of a Python number
    scale = (largest / torch.full_like(largest, 127)).clamp_min(float(SMALLEST_SCALE))
    return torch.where(largest > 0, scale, largest)


def _check_finite(wide: torch.Tensor) -> None:
    finite = torch.isfinite(wide).all(1)
    if not bool(finite.all()):
        raise NonFiniteRowError(int((~finite).to(torch.uint8).argmax()))


def _host(tensor: torch.Tensor) -> npt.NDArray[Any]:
    return tensor.cpu().numpy()
