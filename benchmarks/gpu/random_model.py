"""A decoder with random weights made on the device, of the shape of a known model; int8 or 16-bit, the same runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from int8conv.kernels.gpu.linear import Operand
from int8conv.runtime.backends.gpu.backend import GpuBackend
from int8conv.runtime.backends.gpu.deferred import operand_of
from int8conv.runtime.backends.gpu.projections import (
    DeviceProjection,
    QuantizedProjection,
    inner_of,
)
from int8conv.runtime.backends.interface import Backend
from int8conv.runtime.backends.parts import Hidden, Projection
from int8conv.runtime.decoder.decoder import Decoder
from int8conv.runtime.models.architecture import Architecture, Module, read_architecture
from int8conv.runtime.models.config import Activation
from int8conv.runtime.weights.weights import Lookup

from .layers import random_weight

CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192, "rope_theta": 500000.0,
    },
    "Llama-3.1-70B": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "max_position_embeddings": 8192, "rope_theta": 500000.0,
    },
    "Llama-2-7B": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 4096, "rope_theta": 10000.0,
    },
    "tiny": {
        "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 160,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
}  # fmt: skip


class FusedDense(DeviceProjection):
    """Linears of one input as one 16-bit matrix, which also adds a residual, as the int8 ones do: what 16 bits could be at best.

    The runtime itself keeps 16-bit linears apart, as they are in a checkpoint.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, sizes: Sequence[int]) -> None:
        self.weight, self.bias, self.sizes = weight, bias, list(sizes)

    def __call__(self, x: Hidden, *, residual: Tensor | None = None) -> Sequence[Tensor]:
        rows, shape = operand_of(x)
        if residual is None or self.bias is not None:
            y = F.linear(rows.value(), self.weight, self.bias)
            y = y if residual is None else y + residual.reshape(y.shape)
        else:  # one product
            y = torch.addmm(residual.reshape(-1, residual.shape[-1]), rows.value(), self.weight.t())
        return y.view(*shape, -1).split_with_sizes(self.sizes, dim=-1)

    def inner(self, x: Operand, activation: Activation, gated: bool) -> Operand:
        return inner_of([F.linear(x.value(), self.weight, self.bias)], activation, gated)


class RandomWeights:
    """Every linear of attention and FFN in int8 with ``share`` outlier columns, or (None) in 16 bits like the rest.

    ``int8_head``: the head in int8 too, without columns, as ``convert --head int8`` has it.
    """

    def __init__(
        self, form: Architecture, dtype: torch.dtype, device: torch.device, share: float | None, *, int8_head: bool = False
    ) -> None:  # fmt: skip
        self.int8_head = int8_head
        self.dtype = dtype
        self.device = device
        self.share = share
        self.backend: Backend = GpuBackend(form.config.max_positions, device)
        self.linear_bytes = 0
        """Read at each step."""

    def tensor(
        self, module: Module, kind: str = "weight", dtype: torch.dtype | None = None
    ) -> Tensor:
        shape = module.shape if kind == "weight" else module.shape[:1]
        dtype = dtype or self.dtype
        if module.kind == "norm":
            return torch.ones(shape, dtype=dtype, device=self.device)
        return torch.randn(shape, dtype=dtype, device=self.device) * 0.02

    def lookup(self, module: Module) -> Lookup:
        weight = self.tensor(module)
        return lambda rows: F.embedding(rows, weight)

    def projection(self, modules: Sequence[Module]) -> Projection:
        is_head = self.int8_head and modules[0].kind == "head"
        if self.share is None or not (is_head or modules[0].kind in ("attention", "ffn")):
            weights = torch.cat([self.tensor(m) for m in modules])
            bias = torch.cat([self.tensor(m, "bias") for m in modules]) if modules[0].bias else None
            self.linear_bytes += weights.nbytes
            return FusedDense(weights, bias, [m.shape[0] for m in modules])
        sizes = [m.shape[0] for m in modules]
        heavy = (
            modules[0].role == "down" or is_head
        )  # as every second matrix of a gated FFN after a conversion
        share = 0.0 if is_head else self.share
        weight = random_weight(sum(sizes), modules[0].shape[1], share, self.dtype, self.device, heavy=heavy)  # fmt: skip
        tensors = (weight.codes, weight.scale, weight.outlier_weight)
        self.linear_bytes += sum(t.nbytes for t in tensors if t is not None)
        bias = torch.cat([self.tensor(m, "bias") for m in modules]) if modules[0].bias else None
        return QuantizedProjection(weight, bias, sizes, None)


def random_decoder(
    name: str, dtype: torch.dtype, device: torch.device, share: float | None, layers: int | None = None, *, int8_head: bool = False
) -> tuple[Decoder, int]:  # fmt: skip
    """The decoder, of ``layers`` or all of its layers, and the bytes of weights that a step reads."""
    config = dict(CONFIGS[name])
    if layers is not None:
        config["num_hidden_layers"] = layers
    form = read_architecture(config, ())
    weights = RandomWeights(form, dtype, device, share, int8_head=int8_head)
    decoder = Decoder(form, weights, dtype)
    return decoder, weights.linear_bytes
