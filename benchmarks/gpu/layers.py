"""Random weights and activations of the layers of known models, on the device."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from int8conv.kernels.gpu.quantize import HEAVY_BLOCK, SCALE_BLOCK
from int8conv.kernels.weight import MixedWeight

SHAPES = {
    "Llama-3.1-8B": {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)},
    "Llama-3.1-70B": {"qkv": (10240, 8192), "o": (8192, 8192), "gate_up": (57344, 8192), "down": (8192, 28672)},
    "OPT-13B": {"qkv": (15360, 5120), "o": (5120, 5120), "up": (20480, 5120), "down": (5120, 20480)},
    "tiny": {"qkv": (96, 64), "down": (64, 160)},
}  # fmt: skip
"""``[out, in]`` of each linear."""


def random_weight(out: int, channels: int, share: float, dtype: torch.dtype, device: torch.device, threshold: float | None = 6.0, heavy: bool = False) -> MixedWeight:  # fmt: skip
    """``share`` of the channels are outliers, in multiples of 16; ``heavy``: an input that is heavy-tailed, as of every ``down``."""
    bits: Literal[8, 16] = 16 if heavy else 8
    threshold = None if heavy else threshold
    k = -(-round(share * channels) // 16) * 16
    codes = torch.randint(-127, 128, (out, channels), dtype=torch.int8, device=device)
    scale = torch.rand(out, device=device) * 1e-3
    if not k:
        return MixedWeight(codes, scale, threshold=threshold, activation_bits=bits)
    index = torch.randperm(channels, device=device)[:k].sort().values.to(torch.int32)
    codes[:, index.long()] = 0
    columns = torch.randn(out, k, device=device).to(dtype) * 0.05
    return MixedWeight(codes, scale, index, columns, threshold, activation_bits=bits)


def random_tokens(tokens: int, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(tokens, channels, device=device).clamp(-5.9, 5.9).to(dtype)


def copies_beyond_cache(nbytes: int) -> int:
    """How many copies of a matrix no L2 cache holds: launches that take them in turn read from memory, as in a model."""
    return max(1, -(-(256 << 20) // nbytes))


def block_of(weight: MixedWeight) -> int:
    """Channels per scale of its input's activations, as ``linear`` chooses."""
    return HEAVY_BLOCK if weight.activation_bits == 16 else SCALE_BLOCK
