"""What outlier columns cost: a layer's four linears with them against the same without.

Quantizer and product for a prompt (W8A8), the product alone for a step (W8A16).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from int8conv.kernels.gpu.gemm import gemm
from int8conv.kernels.gpu.skinny import w8a16
from int8conv.kernels.weight import MixedWeight

from .gemm import quantized
from .layers import SHAPES, copies_beyond_cache, random_tokens, random_weight
from .session import F16, Row, Session
from .timing import seconds


def rows(session: Session) -> Iterator[Row]:
    """Percent of the time of the layer without."""
    linears = SHAPES[session.model]
    for m in session.pick([1, 17], [1, 2048, 8192]):
        plain = _layer(session, linears, m, 0.0)
        for name, share in (("0.1 % outliers", 0.001), ("1 % outliers", 0.01)):
            took = _layer(session, linears, m, share)
            yield {"M": m, "with": name, "us": took * 1e6, "us without": plain * 1e6, "cost %": 100 * (took / plain - 1)}  # fmt: skip


def _layer(session: Session, linears: dict[str, tuple[int, int]], m: int, share: float) -> float:  # fmt: skip
    """Seconds of the linears, each with copies of its weight so that the L2 cache does not help a step."""
    total = 0.0
    for name, (out, channels) in linears.items():
        copies = session.pick(1, copies_beyond_cache(out * channels))
        heavy = name == "down"
        weights = [random_weight(out, channels, share, F16, session.device, heavy=heavy) for _ in range(copies)]  # fmt: skip
        x = random_tokens(m, channels, F16, session.device)
        total += seconds([lambda w=w, x=x: _linear(x, w) for w in weights], session.device)  # fmt: skip
    return total


def _linear(x: Tensor, weight: MixedWeight) -> Tensor:
    if x.shape[0] == 1:
        return w8a16(x, weight)
    return gemm(quantized(x, weight), weight)
