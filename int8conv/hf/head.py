"""A model's head, read in 16 bits: in float32, as transformers holds it, it takes as long as many layers in int8."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from ..kernels.cpu import jit
from ..kernels.dispatch import compiled_tokens, dense_linear

_ROWS: Final = 4096


class NarrowHead(nn.Linear):
    """A float32 linear that multiplies few tokens by a 16-bit copy of its weight, if the weight fits 16 bits exactly.

    It does if it was read from a file in 16 bits. The copy is made at the first such product, and again if the weight changes.
    """

    _copy: tuple[object, Tensor | None] | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as nn.Linear calls it
        """float ``[..., in]`` -> ``[..., out]`` in the same dtype."""
        if torch.compiler.is_compiling() or not self._is_few(input):
            return super().forward(input)
        narrow = self._narrow()
        return super().forward(input) if narrow is None else dense_linear(input, narrow, self.bias)

    def _is_few(self, x: Tensor) -> bool:
        weight = self.weight
        plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
        on_host = weight.device.type == "cpu" and not weight.is_inference()
        without_gradient = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        return plain and on_host and without_gradient and 0 < x.numel() <= compiled_tokens() * x.shape[-1]  # fmt: skip

    def _narrow(self) -> Tensor | None:
        key = (self.weight.data_ptr(), self.weight._version)
        found = self.__dict__.get("_copy")
        if found is None or found[0] != key:
            self._copy = found = (key, _narrowed(self.weight.detach()))
        copy: Tensor | None = found[1]
        return copy

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_copy"}


def _narrowed(weight: Tensor) -> Tensor | None:
    """The same matrix in 16 bits; None if it does not fit."""
    for dtype in (torch.float16, torch.bfloat16):
        narrow = torch.empty_like(weight, dtype=dtype)
        for first in range(0, len(weight), _ROWS):
            rows = slice(first, first + _ROWS)
            narrow[rows] = weight[rows]
            if not torch.equal(narrow[rows].float(), weight[rows]):
                break
        else:
            return narrow
    return None


def narrow_head(model: PreTrainedModel) -> None:
    """Let the head of a model read 16 bits, if numba is installed."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and jit.available():
        head.__class__ = NarrowHead


def widen_head(model: PreTrainedModel) -> None:
    """Undo ``narrow_head``."""
    head = model.get_output_embeddings()
    if type(head) is NarrowHead:
        head.__dict__.pop("_copy", None)
        head.__class__ = nn.Linear  # type: ignore[assignment]
