# ruff: noqa: N803
"""The model against what others have measured: their kernels, rebuilt from their description, predicted as ours are.

gpt-fast (README of meta-pytorch/gpt-fast, A100 80 GB at 330 W, where it finds a peak of 1700 GB/s): batch 1, five tokens of context, torch.compile. Its int8 is per row,
head included, and Inductor makes of each linear one reduction over rows in float32: ``rows_kernel``. Eleven kernels per layer: two
norms, qkv, rotary and cache (2), attention (2), output, gate, up with the product, down.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from tests.kernels.gpu.compiling import Recorded, compile_for

from . import hardware as H
from .hardware import GPUS, Gpu
from .predict import predict
from .random_model import CONFIGS


@triton.jit
def rows_kernel(x, codes_w, scale_w, out, K, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """As Inductor writes a product of a matrix with a vector."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK_K)
    sums = tl.zeros((ROWS, BLOCK_K), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = (start + k < K)[None, :]
        w = tl.load(codes_w + n[:, None] * K + (start + k)[None, :], mask=inside, other=0)
        values = tl.load(x + (start + k)[None, :], mask=inside, other=0.0).to(tl.float32)
        sums += w.to(x.dtype.element_ty).to(tl.float32) * values
    y = tl.sum(sums, 1)
    if scale_w is not None:
        y *= tl.load(scale_w + n)
    tl.store(out + n, y.to(out.dtype.element_ty))


@dataclass(frozen=True)
class Published:
    """A measured speed."""

    model: str
    weights: str
    tokens_per_second: float


GPT_FAST = (
    Published("Llama-3.1-8B", "bf16", 93.89), Published("Llama-3.1-8B", "int8", 137.64), Published("Llama-2-7B", "bf16", 104.9),
    Published("Llama-2-7B", "int8", 155.58), Published("Llama-3.1-70B", "int8", 18.04),
)  # fmt: skip
PEAK = 1.7e12
"""Bytes per second, by the same page."""
MARLIN = 1.6
"""Times faster than fp16 that 8-bit weights with 16-bit activations are in Marlin's manner, in a step of few tokens."""
SMALL_KERNELS = 6
"""Of a layer in gpt-fast: those that are not linears."""


def rows(out: int, channels: int, int8: bool) -> Recorded:
    def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    weight = meta(out, channels, dtype=torch.int8 if int8 else torch.bfloat16)
    scale = meta(out, dtype=torch.bfloat16) if int8 else None
    constants: dict[str, Any] = {"ROWS": 1, "BLOCK_K": 2048, "num_warps": 8, "num_stages": 1}
    return Recorded(rows_kernel, (meta(channels), weight, scale, meta(out), channels), constants, (out,))  # fmt: skip


def shapes(model: str) -> tuple[list[tuple[int, int]], tuple[int, int], int]:
    """A layer's linears as gpt-fast has them, the head, and the number of layers."""
    c = CONFIGS[model]
    hidden, inner, size = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // c["num_attention_heads"]  # fmt: skip
    qkv = hidden + 2 * size * c["num_key_value_heads"]
    layer = [(qkv, hidden), (hidden, hidden), (inner, hidden), (inner, hidden), (hidden, inner)]
    return layer, (c["vocab_size"], hidden), c["num_hidden_layers"]


def tokens_per_second(gpu: Gpu, model: str, weights: str) -> float:
    """Of gpt-fast."""
    layer, head, layers = shapes(model)
    seconds = 0.0
    for shape, times in [*((shape, layers) for shape in layer), (head, 1)]:
        launched = rows(*shape, weights == "int8")
        seconds += times * predict(gpu, launched, compile_for(launched, gpu.capability)).seconds
    small = H.NODE + 2 * H.CHAIN * H.CACHED_LATENCY
    return 1 / (seconds + (layers * SMALL_KERNELS + 4) * small)


def compared() -> list[list[Any]]:
    """Model, weights, measured, predicted, ratio."""
    gpu = replace(next(gpu for gpu in GPUS if gpu.name == "A100"), peak=PEAK / H.READ_SHARE)
    found = []
    for each in GPT_FAST:
        predicted = tokens_per_second(gpu, each.model, each.weights)
        found.append([
            each.model, each.weights, each.tokens_per_second, predicted, predicted / each.tokens_per_second,
        ])  # fmt: skip
    return found
