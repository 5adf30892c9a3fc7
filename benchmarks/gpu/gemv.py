"""W8A16 for few tokens: bytes of weight a second against a copy's; weights in turn, so that the L2 cache does not help."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from int8conv.kernels.gpu.skinny import w8a16

from .layers import SHAPES, random_tokens, random_weight
from .session import F16, Row, Session, out_of_time
from .timing import seconds

ROTATED_BYTES = 512 << 20
"""Several times the L2 cache."""


def rows(session: Session) -> Iterator[Row]:
    models = session.pick(["tiny"], ["Llama-3.1-8B", "Llama-3.1-70B", "OPT-13B"])
    for model in models:
        for layer, (out, channels) in SHAPES[model].items():
            of = {"model": model, "layer": layer, "N": out, "K": channels}
            count = max(2, -(-session.pick(1, ROTATED_BYTES) // (out * channels)))
            weights = [random_weight(out, channels, 0.001, F16, session.device) for _ in range(count)]  # fmt: skip
            first = weights[0]
            tensors = (first.codes, first.scale, first.outlier_index, first.outlier_weight)
            nbytes = sum(t.nbytes for t in tensors if t is not None)
            for m in session.pick([1, 3], [1, 2, 4, 8, 16, 32, 64]):
                if session.left() < 0:
                    yield out_of_time(of | {"M": m})
                    continue
                x = random_tokens(m, channels, F16, session.device)
                calls: list[Callable[[], object]] = [lambda w=w, x=x: w8a16(x, w) for w in weights]
                took = seconds(calls, session.device)
                yield of | {
                    "M": m, "MB": nbytes * 1e-6, "us": took * 1e6, "GB/s": nbytes / took * 1e-9,
                    "share of copy": nbytes / took / session.copy, "share of read": nbytes / took / session.read,
                }  # fmt: skip
