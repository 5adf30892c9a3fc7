"""A norm's parameters, and its formula in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class NormWeights:
    """A norm's parameters, in the dtype of the activations."""

    rms: bool
    eps: float
    weight: Tensor
    """For an RMSNorm possibly float32: the values it multiplies are then not rounded first, as in Gemma."""
    bias: Tensor | None


def unweighted(size: int, eps: float, device: torch.device | None = None) -> NormWeights:
    """An RMSNorm of ``size`` channels without a weight."""
    return NormWeights(True, eps, torch.ones(size, device=device), None)


def normalised(x: Tensor, norm: NormWeights) -> Tensor:
    """RMSNorm (arXiv:1910.07467) or LayerNorm of the last axis, computed in float32."""
    if not norm.rms:
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    if norm.weight.dtype != x.dtype:
        return (wide * norm.weight).to(x.dtype)
    return wide.to(x.dtype) * norm.weight
