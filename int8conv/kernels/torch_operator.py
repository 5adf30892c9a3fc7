"""The mixed linear as one operator of PyTorch, ``torch.ops.int8conv.mixed_linear``, which torch.compile and autograd know.

Its gradient is that of the dequantized weight, as if nothing were rounded: what adapters in front of it are trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ..errors import ArgumentError
from .dispatch import Mode, check_mode, mixed_linear
from .weight import MixedWeight, dequantized_rows

_HALVES = (torch.float16, torch.bfloat16)


def mixed_weight(
    codes: Tensor, scale: Tensor, index: Tensor | None, kept: Tensor | None, threshold: float | None
) -> MixedWeight:
    """The tensors of a linear as stored in the file, with codes ``[out, in, 1]`` and the threshold of its group."""
    return MixedWeight(
        codes.squeeze(-1), scale, index, kept, threshold or None,
        activation_bits=16 if threshold == 0 else 8,
    )  # fmt: skip


def multiply(x: Tensor, weight: MixedWeight, bias: Tensor | None, mode: Mode | None) -> Tensor:
    """``x @ weight^T + bias``: 16-bit activations on a GPU use its kernels; others are computed as on a CPU.

    Raises:
        ArgumentError: a shape or mode is invalid.
    """
    if x.device.type != "cuda" or x.dtype not in _HALVES:
        return mixed_linear(x, weight, bias, mode=mode)
    from .gpu.linear import Operand, linear  # needs triton

    if x.shape[-1] != weight.in_features:
        raise ArgumentError("last axis of x", expected=weight.in_features, found=x.shape[-1])
    rows = x.reshape(-1, weight.in_features)
    if not len(rows):
        return x.new_empty(*x.shape[:-1], weight.out_features)
    y = linear(Operand(rows.contiguous()), weight, bias, mode=mode)
    return y.reshape(*x.shape[:-1], weight.out_features)


@torch.library.custom_op("int8conv::mixed_linear", mutates_args=())
def mixed_linear_op(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    index: Tensor | None,
    kept: Tensor | None,
    bias: Tensor | None,
    threshold: float | None,
    mode: str | None,
) -> Tensor:
    check_mode(mode)
    weight = mixed_weight(codes, scale, index, kept, threshold)
    return multiply(x, weight, bias, mode)  # type: ignore[arg-type]  # checked


@mixed_linear_op.register_fake
def _(
    x: Tensor, codes: Tensor, scale: Tensor, index: Tensor | None, kept: Tensor | None, bias: Tensor | None,
    threshold: float | None, mode: str | None,
) -> Tensor:  # fmt: skip
    return x.new_empty(*x.shape[:-1], codes.shape[0])


def _remember(
    ctx: FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, float, str],
    output: Tensor,
) -> None:
    _, codes, scale, index, kept, bias, *_ = inputs
    ctx.save_for_backward(codes, scale, *(t for t in (index, kept) if t is not None))
    ctx.bias_dtype = None if bias is None else bias.dtype  # type: ignore[attr-defined]


def _gradients(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    codes, scale, *columns = ctx.saved_tensors  # type: ignore[attr-defined]
    index, kept = columns or (None, None)
    weight = mixed_weight(codes, scale, index, kept, None)
    of_x = grad @ dequantized_rows(weight, slice(None)).to(grad.dtype)
    dtype = ctx.bias_dtype  # type: ignore[attr-defined]
    of_bias = None if dtype is None else grad.flatten(0, -2).sum(0).to(dtype)
    return of_x, None, None, None, None, of_bias, None, None


mixed_linear_op.register_autograd(_gradients, setup_context=_remember)
