"""The quantization methods of the LLM.int8() paper (arXiv:2208.07339, section 2 and table 1), as a linear that is simulated in float32.

Codes and scales are those of the method; their products are exact in float32 sums of this size, so the error is the method's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from int8conv.runtime.models.architecture import Module
from int8conv.runtime.weights.weights import CheckpointWeights, Projection

LARGE = 6.0

Linear = Callable[[Tensor], Tensor]
"""float32 ``[tokens, in]`` -> ``[tokens, out]``."""


def absmax(x: Tensor, dim: int | None) -> Tensor:
    """What int8 codes by the largest magnitude stand for: of the whole tensor (None), or along ``dim``."""
    largest = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = (largest / 127).clamp_min(1e-30)
    return (x / scale).round() * scale


def zeropoint(x: Tensor, dim: int | None) -> Tensor:
    """The same with 255 steps from the smallest to the largest value; zero is one of them."""
    low = x.amin() if dim is None else x.amin(dim, keepdim=True)
    high = x.amax() if dim is None else x.amax(dim, keepdim=True)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp_min(1e-30)
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale


def _plain(
    weight: Tensor, quantize: Callable[[Tensor, int | None], Tensor], x_dim: int | None, w_dim: int | None
) -> Linear:  # fmt: skip
    stored = quantize(weight, w_dim)
    return lambda x: quantize(x, x_dim) @ stored.t()


def _decomposed(weight: Tensor, w_dim: int | None) -> Linear:
    """Channels with a value of 6.0 in this call are multiplied in 16 bits, with 16-bit weights."""

    def linear(x: Tensor) -> Tensor:
        large = (x.abs() >= LARGE).any(dim=0)
        rest = absmax(weight.masked_fill(large, 0), w_dim)
        return absmax(x.masked_fill(large, 0), 1) @ rest.t() + x[:, large] @ weight[:, large].t()

    return linear


def _bitsandbytes(weight: Tensor) -> Linear:
    """The same, but outlier columns of the weight are int8 as well."""
    stored = absmax(weight, 1)

    def linear(x: Tensor) -> Tensor:
        large = (x.abs() >= LARGE).any(dim=0)
        return (absmax(x.masked_fill(large, 0), 1) + x.masked_fill(~large, 0)) @ stored.t()

    return linear


def q8_0(x: Tensor) -> Tensor:
    """What GGUF's Q8_0 makes of ``[rows, columns]``: blocks of 32 columns, each with a float16 scale of absmax / 127."""
    pad = -x.shape[1] % 32
    blocks = F.pad(x, (0, pad)).unflatten(1, (-1, 32))
    largest = blocks.abs().amax(-1, keepdim=True)
    stored = (largest / 127).half().float()  # codes are computed with the scale before rounding
    codes = (blocks * torch.where(largest > 0, 127 / largest, 0.0)).round()
    return (codes * stored).flatten(1)[:, : x.shape[1]]


def _q8_0(weight: Tensor, activations: Callable[[Tensor], Tensor]) -> Linear:
    stored = q8_0(weight)
    return lambda x: activations(x) @ stored.t()


METHODS: dict[str, Callable[[Tensor], Linear]] = {
    "absmax": lambda w: _plain(w, absmax, None, None),
    "zeropoint": lambda w: _plain(w, zeropoint, None, None),
    "row-wise": lambda w: _plain(w, absmax, 1, None),
    "vector-wise": lambda w: _plain(w, absmax, 1, 1),
    "zeropoint vector-wise": lambda w: _plain(w, zeropoint, 1, 1),
    "row-wise + decomposition": lambda w: _decomposed(w, None),
    "LLM.int8(), 16-bit outlier weights": lambda w: _decomposed(w, 1),
    "LLM.int8(), int8 outlier weights": _bitsandbytes,
}
BLOCK_METHODS: dict[str, Callable[[Tensor], Linear]] = {
    "Q8_0 weights": lambda w: _q8_0(w, lambda x: x),
    "Q8_0 weights and activations (llama.cpp)": lambda w: _q8_0(w, q8_0),
}
"""Formats with a scale per block, as llama.cpp multiplies them."""


class MethodWeights(CheckpointWeights):
    """A source whose attention and FFN linears are simulated."""

    def __init__(self, checkpoint: object, method: Callable[[Tensor], Linear]) -> None:
        super().__init__(checkpoint, torch.float32)  # type: ignore[arg-type]
        self._method = method

    def projection(self, modules: Sequence[Module]) -> Projection:
        if not modules[0].group:
            return super().projection(modules)
        linears = [self._method(self.tensor(module)) for module in modules]
        biases = [self.tensor(m, "bias") if m.bias else None for m in modules]

        def project(x: Tensor, *, residual: Tensor | None = None) -> list[Tensor]:
            rows = x.reshape(-1, x.shape[-1])
            outputs = [linear(rows) for linear in linears]
            outputs = [
                (y if bias is None else y + bias).reshape(*x.shape[:-1], -1)
                for y, bias in zip(outputs, biases, strict=True)
            ]
            return outputs if residual is None else [residual + outputs[0]]

        return project


def share_of_large_channels(inputs: dict[str, Tensor]) -> float:
    """Of the channels of all inputs, those with a value of 6.0: what a fixed threshold marks."""
    large = sum(int((absmax >= LARGE).sum()) for absmax in inputs.values())
    return large / sum(len(absmax) for absmax in inputs.values())


def one_layer(seed: int = 0) -> dict[str, float]:
    """Relative RMS error of one linear: Gaussian weight 512x1024, 256 tokens, 6 channels of magnitude 20 to 60."""
    import numpy as np

    from int8conv.convert.outliers.rule import choose_outliers
    from int8conv.formats.int8.stats import InputStats
    from int8conv.kernels.dispatch import mixed_linear
    from int8conv.kernels.weight import MixedWeight

    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(512, 1024, generator=generator) * 0.05).half().float()
    x = torch.randn(256, 1024, generator=generator)
    channels = torch.randperm(1024, generator=generator)[:6]
    signs = torch.randn(256, 6, generator=generator).sign()
    x[:, channels] = signs * (20 + 40 * torch.rand(256, 6, generator=generator))
    truth = F.linear(x.double(), weight.double())

    def error(y: Tensor) -> float:
        return float((y.double() - truth).norm() / truth.norm())

    def sums(values: Tensor) -> np.ndarray:
        return np.stack([values.sum(0).numpy(), np.zeros(1024)])

    double = x.double()
    found = InputStats(
        x.abs().amax(0).numpy(), np.zeros(1024, np.int64), sums(double**2), sums(double**4),
        np.ones(1024, np.float32),
    )  # fmt: skip
    choice = choose_outliers(found, len(x))
    columns = torch.from_numpy(choice.columns).long()
    inner = weight.index_fill(1, columns, 0)
    scale = inner.abs().amax(1) / 127
    codes = (inner / scale[:, None]).round().to(torch.int8)
    mixed = MixedWeight(codes, scale, columns.int(), weight[:, columns].half(), choice.threshold)
    figures = {name: error(method(weight)(x)) for name, method in METHODS.items()}
    figures["int8conv W8A8"] = error(mixed_linear(x, mixed, mode="w8a8"))
    figures["int8conv W8A16"] = error(mixed_linear(x, mixed, mode="w8a16"))
    return figures
