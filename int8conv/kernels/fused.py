"""A layer of a decoder for one new token of each sequence on a CPU, compiled whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from . import jit
from .weight import MixedWeight

ACTIVATIONS: Final = {"silu": 1, "relu": 2, "gelu": 3, "gelu_tanh": 4}
_NO_TABLE: Final = np.empty((1, 0), np.float32)


@dataclass(frozen=True)
class FusedNorm:
    """RMSNorm (arXiv:1910.07467), or LayerNorm."""

    rms: bool
    eps: float
    weight: Tensor
    """float32 ``[hidden]``."""
    bias: Tensor | None


@dataclass(frozen=True)
class FusedAttention:
    """What attention does, beyond its linears."""

    scale: float
    window: int | None
    """Positions that a token sees, itself included; None: all."""
    query_gain: Tensor | None
    """float32 ``[head_dim]``: of an RMSNorm of each head."""
    key_gain: Tensor | None
    eps: float
    """Of these two."""


FusedLinear = tuple[MixedWeight, "Tensor | None"]
"""A weight and a bias."""


class FusedLayer:
    """``h = x + out(attention(qkv(norm(x))))``, then ``h + down(inner(norm(h)))`` in W8A16.

    Args:
        norms: before attention and before the FFN.
        attention: see there.
        linears: qkv ``[(heads + 2 kv_heads) * head_dim, hidden]``, out, the FFN's wide one, down.
        activation: a key of ``ACTIVATIONS``.
        paired: whether the wide one is ``[gate; up]``: the inner state is then ``act(gate) * up``.
    """

    def __init__(
        self, norms: Sequence[FusedNorm], attention: FusedAttention, linears: Sequence[FusedLinear], activation: str,
        paired: bool,
    ) -> None:  # fmt: skip
        a = attention
        norm, mlp_norm = ((1 if n.rms else 2, n.eps, jit.array(n.weight), jit.array(n.bias)) for n in norms)  # fmt: skip
        qkv, out, wide, down = (jit.linear_arguments(weight, bias) for weight, bias in linears)
        self._arguments = (
            *norm, *qkv, jit.array(a.query_gain), jit.array(a.key_gain), a.eps, a.scale, a.window or 0, *out, *mlp_norm,
            *wide, ACTIVATIONS[activation], paired, *down,
        )  # fmt: skip

    def __call__(
        self, x: Tensor, tables: tuple[Tensor, Tensor] | None, keys: Tensor, values: Tensor, lengths: Tensor,
    ) -> Tensor:  # fmt: skip
        """The layer's output, float32 ``[batch, hidden]``.

        Args:
            x: float32 ``[batch, hidden]``.
            tables: cos and sin, float32 ``[batch or 1, rotated]``, the second half as the first; None: nothing is rotated.
            keys: the cache, float32 ``[batch, kv_heads, capacity, head_dim]``, contiguous, and ``values``: likewise; the new
                keys and values go into it.
            values: see ``keys``.
            lengths: int64 ``[batch]``: positions filled before.

        Raises:
            IndexError: the cache is full.
        """
        cos, sin = (_table(table, len(x)) for table in tables or (None, None))
        cache = keys.numpy(), values.numpy(), lengths.numpy()
        with jit.threads() as (kernels, parts):
            y = kernels.layer(x.numpy(), parts, *cache, cos, sin, *self._arguments)
        return torch.from_numpy(y)


def _table(table: Tensor | None, batch: int) -> Any:
    """``[batch, rotated]``."""
    found = _NO_TABLE if table is None else table.numpy()
    if found.shape[0] != batch:
        found = np.broadcast_to(found, (batch, found.shape[1]))
    return np.ascontiguousarray(found)
