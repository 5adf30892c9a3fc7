"""A decoder layer for one new token per sequence on a CPU, compiled as one function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..weight import MixedWeight
from . import jit

ACTIVATIONS: Final = {"silu": 1, "relu": 2, "gelu": 3, "gelu_tanh": 4, "relu2": 5}


@dataclass(frozen=True)
class FusedNorm:
    """RMSNorm (arXiv:1910.07467) or LayerNorm."""

    rms: bool
    eps: float
    weight: Tensor
    """float32 ``[hidden]``."""
    bias: Tensor | None


@dataclass(frozen=True)
class FusedAttention:
    """Attention apart from its linears."""

    scale: float
    window: int | None
    """Number of positions that a token attends to, including itself; None: all."""
    query_gain: Tensor | None = None
    """float32 gain of an RMSNorm: ``[head_dim]`` for each head separately, ``[heads * head_dim]`` for all heads together."""
    key_gain: Tensor | None = None
    eps: float = 0.0
    """Epsilon of these two norms."""
    interleaved: bool = False
    """How rotary positions pair channels."""
    softcap: float | None = None
    """Soft cap of scores."""
    slopes: Tensor | None = None
    """float32 ``[heads]``: ALiBi slopes."""
    by_heads: bool = False
    """Whether qkv rows are grouped by key head: its queries, its key, its value."""


Tables = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""cos and sin as ``as_tables`` gives them."""
FusedLinear = tuple[MixedWeight, Tensor | None]
"""A weight and a bias."""


class FusedLayer:
    """``h = x + residual_multiplier * post(out(attention(qkv(norm(x)))))``, then ``h + residual_multiplier * post(down(inner(norm(h))))`` in W8A16.

    Args:
        norms: before and after attention, before and after the FFN; None where there is no norm.
        attention: attention apart from its linears.
        linears: qkv ``[(heads + 2 kv_heads) * head_dim, hidden]``, out, the FFN's first linear, down.
        activation: a key of ``ACTIVATIONS``.
        gated: whether the first FFN linear is ``[gate; up]``, so that the inner state is ``act(gate) * up``.
        parallel: whether the FFN's input is also ``x``.
        residual_multiplier: see above.
    """

    def __init__(
        self, norms: Sequence[FusedNorm | None], attention: FusedAttention, linears: Sequence[FusedLinear], activation: str,
        gated: bool, *, parallel: bool = False, residual_multiplier: float = 1.0,
    ) -> None:  # fmt: skip
        a = attention
        norm, post, mlp_norm, mlp_post = (_norm(each) for each in norms)
        qkv, out, wide, down = (jit.linear_arguments(weight, bias) for weight, bias in linears)
        self._arguments = (
            *norm, *post, *qkv, a.by_heads, jit.array(a.query_gain), jit.array(a.key_gain), a.eps, a.interleaved, a.scale,
            a.softcap or 0.0, jit.array(a.slopes), a.window or 0, *out, parallel, float(residual_multiplier), *mlp_norm, *mlp_post,
            *wide, ACTIVATIONS[activation], gated, *down,
        )  # fmt: skip

    def __call__(
        self, x: Tensor, tables: tuple[Tensor, Tensor] | None, keys: Tensor, values: Tensor, lengths: Tensor,
    ) -> Tensor:  # fmt: skip
        """The layer's output, float32 ``[batch, hidden]``.

        Args:
            x: float32 ``[batch, hidden]``.
            tables: cos and sin, float32 ``[batch or 1, rotated]``, each pair's value twice; None: nothing is rotated.
            keys: key cache, float32 ``[batch, kv_heads, capacity, head_dim]``, contiguous; the new keys are stored in it.
            values: value cache, likewise.
            lengths: int64 ``[batch]``: number of positions already filled.

        Raises:
            IndexError: the cache is full.
        """
        return self.step(x, as_tables(tables, len(x)), keys, values, lengths)

    def step(self, x: Tensor, tables: Tables, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:  # fmt: skip
        """The same with tables that several layers share."""
        cache = keys.numpy(), values.numpy(), lengths.numpy()
        with jit.threads() as parts:
            from .jit_layer import layer  # takes half a second

            y = layer(x.numpy(), parts, *cache, *tables, *self._arguments)
        return torch.from_numpy(y)


def prepare() -> None:
    """Compile the code of layers, or load it from disk, now rather than at the first token."""
    weight, wide = (
        MixedWeight(torch.ones(n, 64, dtype=torch.int8), torch.ones(n, dtype=torch.float32))
        for n in (64, 192)
    )
    norm = FusedNorm(True, 1e-6, torch.ones(64, dtype=torch.float32), None)
    linears = ((wide, None), (weight, None), (weight, None), (weight, None))
    layer = FusedLayer((norm, None, norm, None), FusedAttention(1.0, None), linears, "silu", False)
    cache = torch.ones(1, 1, 2, 64, dtype=torch.float32)
    table = torch.ones(1, 64, dtype=torch.float32)
    for tables in (None, (table, table)):
        layer(table.clone(), tables, cache, cache, torch.zeros(1, dtype=torch.int64))


def _norm(norm: FusedNorm | None) -> tuple[object, ...]:
    if norm is None:
        return jit.NO_NORM
    return 1 if norm.rms else 2, norm.eps, jit.array(norm.weight), jit.array(norm.bias)


def as_tables(tables: tuple[Tensor, Tensor] | None, batch: int) -> Tables:
    """cos and sin, float32 ``[batch or 1, rotated]``, for ``batch`` sequences; None: nothing is rotated."""
    cos, sin = tables or (None, None)
    return _table(cos, batch), _table(sin, batch)


def _table(table: Tensor | None, batch: int) -> npt.NDArray[np.float32]:
    """``[batch, rotated]``."""
    if (
        table is None
    ):  # of every batch in one type: one that cannot be written to would be compiled anew
        return np.empty((batch, 0), np.float32)
    found = table.numpy()
    if found.shape[0] != batch:
        found = np.broadcast_to(found, (batch, found.shape[1]))
    return np.ascontiguousarray(found)
