"""The weights of a source that is run to learn about its activations."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from ...formats.safetensors.storage import LocalFile
from ...formats.source.checkpoint import Checkpoint
from ...runtime.models.architecture import Module, find_tensor
from ...runtime.weights.mapping import TORCH_DTYPES, MappedFiles
from ...runtime.weights.weights import CheckpointWeights, Lookup
from ..stream import non_finite_weight

_ROWS_AT_ONCE: Final = 1 << 17
"""Number of weights whose int8 error is computed at once."""


class SourceWeights(CheckpointWeights):
    """Reports a NaN or infinity in the weight itself rather than in the resulting activation.

    Reads only the embedding rows that are looked up. With ``errors``, records the error that int8 rows would cause in each column.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, *, errors: bool = False
    ) -> None:
        super().__init__(checkpoint, torch.float32)
        self._errors = errors
        self._squares: dict[str, Tensor | int] = {}
        self._device = device
        self._mapped = MappedFiles()

    def tensor(
        self, module: Module, kind: str = "weight", dtype: torch.dtype | None = None
    ) -> Tensor:
        tensor = super().tensor(module, kind, dtype)
        self._check(tensor, module, kind)
        if self._errors and module.group and kind == "weight":
            first = module.group[0]
            self._squares[first] = self._squares.get(first, 0) + column_errors(
                tensor.t() if module.transposed else tensor
            )
        return tensor if module.layer is None else tensor.to(self._device)

    def lookup(self, module: Module) -> Lookup:
        stored = find_tensor(self.checkpoint, module)
        if stored.dtype not in TORCH_DTYPES or not isinstance(stored.file, LocalFile):
            return super().lookup(module)
        table = self._mapped.tensor(stored)

        def look_up(rows: Tensor) -> Tensor:
            found = F.embedding(rows, table).float()
            self._check(found.flatten(0, -2), module, "weight", rows.flatten())
            return found

        return look_up

    def error(self, path: str) -> Tensor:
        """Error of each column, float32 ``[in]``, for the input whose first linear is ``path``."""
        return torch.as_tensor(self._squares[path]).sqrt().float()

    def _check(self, tensor: Tensor, module: Module, kind: str, rows: Tensor | None = None) -> None:
        if bool(
            tensor.sum().isfinite()
        ):  # a tenth of the time that it takes to look at every value
            return
        finite = tensor.isfinite()
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0, 0])
            row = row if rows is None else int(rows[row])
            raise non_finite_weight(find_tensor(self.checkpoint, module, kind), row)


def column_errors(weight: Tensor) -> Tensor:
    """Squared error of int8 rows summed over rows, float64 ``[in]`` on the CPU, for a float weight ``[out, in]`` on any device."""
    total = torch.zeros(weight.shape[1], dtype=torch.float64)
    for rows in torch.split(weight, max(1, _ROWS_AT_ONCE // max(weight.shape[1], 1))):
        rows = rows.float().cpu()
        scale = torch.linalg.vector_norm(rows, torch.inf, dim=1) / 127
        steps = rows / scale.masked_fill(scale == 0, 1.0)[:, None]
        steps -= steps.round()
        total += scale.square() @ steps.square_()
    return total
