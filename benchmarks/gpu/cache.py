"""Decode attention over long caches, in 16 bits and in int8: bytes of cache a second against a copy's, layers in turn so that the
L2 cache does not help."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from int8conv.kernels.gpu.attention import attend

from .gemv import ROTATED_BYTES
from .session import F16, Row, Session, out_of_time
from .timing import seconds


def rows(session: Session) -> Iterator[Row]:
    """Heads of Llama-3.1-8B; every sequence is as long as its cache."""
    heads, kv_heads, size = session.pick((4, 2, 16), (32, 8, 128))
    for batch in session.pick([1, 2], [1, 8]):
        for length in session.pick([40], [1024, 8192, 32768]):
            took = {}
            for name in ("fp16", "int8"):
                of = {"batch": batch, "positions": length, "cache": name}
                if session.left() < 0:
                    yield out_of_time(of)
                    continue
                layers = _layers(session, (batch, kv_heads, length, size), name == "int8")
                nbytes = sum(t.nbytes for t in layers[0])
                qkv = [
                    torch.randn(batch, n * size, device=session.device).to(F16)
                    for n in (heads, kv_heads, kv_heads)
                ]
                filled = torch.full((batch,), length, dtype=torch.int32, device=session.device)
                calls: list[Callable[[], object]] = [
                    lambda layer=layer, qkv=qkv, filled=filled: _attend(qkv, layer, filled) for layer in layers
                ]  # fmt: skip
                took[name] = seconds(calls, session.device)
                yield of | {
                    "MB": nbytes * 1e-6, "us": took[name] * 1e6, "GB/s": nbytes / took[name] * 1e-9,
                    "share of copy": nbytes / took[name] / session.copy, "share of read": nbytes / took[name] / session.read,
                    "against fp16": took["fp16"] / took[name] if "fp16" in took else None,
                }  # fmt: skip


def _layers(session: Session, shape: tuple[int, ...], int8: bool) -> list[list[Tensor]]:
    """Keys and values of as many layers as the L2 cache does not hold; of int8 with their scales."""
    elements = 2 * shape[0] * shape[1] * shape[2] * shape[3]
    count = max(2, -(-session.pick(1, ROTATED_BYTES) // (elements * (1 if int8 else 2))))
    if not int8:
        return [list(torch.randn(2, *shape, device=session.device).to(F16)) for _ in range(count)]
    scale = torch.full((2, *shape[:3], 1), 0.02, dtype=F16, device=session.device)
    return [
        [*torch.randint(-127, 128, (2, *shape), dtype=torch.int8, device=session.device), *scale.clone()]
        for _ in range(count)
    ]  # fmt: skip


def _attend(qkv: list[Tensor], layer: list[Tensor], filled: Tensor) -> Tensor:
    keys, values, *scales = layer
    both = (scales[0], scales[1]) if scales else None
    q, k, v = qkv
    return attend(q, k, v, None, filled, keys, values, scale=keys.shape[3] ** -0.5, scales=both)
