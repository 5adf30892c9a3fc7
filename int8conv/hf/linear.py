"""``Int8convLinear``: a linear of a converted folder in a PyTorch model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..kernels.dispatch import Mode, check_mode
from ..kernels.torch_operator import mixed_linear_op, mixed_weight, multiply
from ..kernels.weight import MixedWeight, dequantized_rows

_BUFFERS: Final = ("weight_scale", "outlier_index", "outlier_weight")


class Int8convLinear(nn.Linear):
    """``y = x @ weight^T + bias`` with the tensors of SPEC.md section 1, under their names.

    ``weight`` is a parameter without gradient, int8 ``[out, in, 1]``; the others are buffers, which keep their dtypes whatever the
    model is cast to.

    Args:
        in_features: in.
        out_features: out.
        bias: whether there is a bias, in PyTorch's default dtype.
        outliers: k, the number of columns in 16 bits.
        half: their dtype; None if there are none.
        threshold: as in the manifest: None, 0 for 16-bit activations, or the threshold of the outlier fallback.
        mode: ``"w8a16"``, ``"w8a8"``, or None to choose by the number of tokens.
        conv1d: whether it replaces transformers' ``Conv1D``, whose weight is ``[in, out]``.
    """

    outlier_index: Tensor | None
    outlier_weight: Tensor | None
    weight_scale: Tensor

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, outliers: int = 0, half: torch.dtype | None = None,
        threshold: float | None = None, mode: Mode | None = None, conv1d: bool = False,
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.threshold, self.conv1d = threshold, conv1d
        self.mode: Mode | None = mode
        codes = torch.empty(out_features, in_features, 1, dtype=torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("weight_scale", torch.empty(out_features, dtype=torch.float32))
        index = torch.empty(outliers, dtype=torch.int32) if outliers else None
        self.register_buffer("outlier_index", index)
        kept = torch.empty(out_features, outliers, dtype=half) if outliers else None
        self.register_buffer("outlier_weight", kept)
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)
        self._cached: tuple[object, MixedWeight] | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as nn.Linear calls it
        """float ``[..., in]`` -> ``[..., out]`` in the same dtype."""
        bias = self.bias
        wanted = input.requires_grad or (bias is not None and bias.requires_grad)
        if torch.compiler.is_compiling() or (wanted and torch.is_grad_enabled()):
            y: Tensor = mixed_linear_op(
                input, self.weight, self.weight_scale, self.outlier_index, self.outlier_weight, bias,
                self.threshold, self.mode,
            )  # fmt: skip
            return y
        return multiply(input, self.mixed(), bias, self.mode)

    def mixed(self) -> MixedWeight:
        """The weight for the kernels; rebuilt if one of its tensors has been replaced or moved."""
        codes, buffers = (
            self._parameters["weight"],
            self._buffers,
        )  # at every product: no __getattr__
        scale, index, kept = (buffers[name] for name in _BUFFERS)
        assert codes is not None
        assert scale is not None
        key = (
            codes.data_ptr(), scale.data_ptr(), self.threshold,
            None if index is None or kept is None else (index.data_ptr(), kept.data_ptr()),
        )  # fmt: skip
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, mixed_weight(codes.detach(), scale, index, kept, self.threshold))
        return self._cached[1]

    def dequantized(self) -> Tensor:
        """The weight in float32 ``[out, in]``."""
        return dequantized_rows(self.mixed(), slice(None))

    def reset_parameters(self) -> None:
        """Do nothing: there is no random initialisation of int8 weights."""

    def extra_repr(self) -> str:
        kept = 0 if self.outlier_index is None else len(self.outlier_index)
        return (
            f"{super().extra_repr()}, outliers={kept}, threshold={self.threshold}, mode={self.mode}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8convLinear:
        """Move all tensors but cast only the bias: ``model.half()`` must not round scales."""
        own = {id(t) for t in (self.weight, *self.buffers(recurse=False))}

        def keep_dtype(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            if id(tensor) in own and changed.dtype != tensor.dtype:
                return tensor.to(changed.device)
            return changed

        self._cached = None
        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self


def set_mode(model: nn.Module, mode: Mode | None) -> None:
    """Set the mode of a model's int8 linears: ``"w8a16"``, ``"w8a8"``, or by the number of tokens (None).

    Raises:
        ArgumentError: the mode is unknown, or the model has no int8 linears.
    """
    check_mode(mode)
    if not (linears := int8_linears(model)):
        raise ArgumentError("a mode needs int8 linears", found=f"none in {type(model).__name__}")
    for linear in linears.values():
        linear.mode = mode


def int8_linears(model: nn.Module) -> dict[str, Int8convLinear]:
    """The int8 linears of a model by module path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Int8convLinear)}
