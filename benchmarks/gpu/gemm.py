"""int8 GEMM against cuBLAS in bf16 and ``torch._int_mm``, over the layers of known models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from int8conv.kernels.gpu import configs, launch
from int8conv.kernels.gpu.gemm import gemm
from int8conv.kernels.gpu.quantize import QuantizedTokens, quantize
from int8conv.kernels.weight import MixedWeight

from .layers import SHAPES, block_of, copies_beyond_cache, random_tokens, random_weight
from .session import F16, Row, Session, out_of_time
from .timing import seconds

TOKENS = [2048, 8192, 16, 128, 512, 1, 64, 1024]
"""What matters most first, as time may run out."""
SHARES = [0.001, 0.0, 0.01]


def rows(session: Session) -> Iterator[Row]:
    """The model that runs end to end, everything."""
    return _rows(session, [session.model], session.share(session.pick([1, 17], TOKENS)), session.pick([0.1, 0.0], SHARES))  # fmt: skip


def other_models(session: Session) -> Iterator[Row]:
    """Larger ones, with the default outliers."""
    models = session.pick(["tiny"], ["Llama-3.1-70B", "OPT-13B"])
    return _rows(session, models, session.pick([3], [2048, 8192, 128, 1]), session.pick([0.1], SHARES[:1]))  # fmt: skip


def _rows(session: Session, models: list[str], tokens: list[int], shares: list[float]) -> Iterator[Row]:  # fmt: skip
    for m in tokens:
        for model in models:
            for layer, (out, channels) in SHAPES[model].items():
                of = {"model": model, "layer": layer, "M": m, "N": out, "K": channels}
                if session.left() < 0:
                    yield out_of_time(of)
                    continue
                x = random_tokens(m, channels, F16, session.device)
                peers = _peers(session, x, out)
                for share in shares:
                    ours = _ours(session, x, out, share, layer == "down", tma=share == shares[0])
                    yield of | {"outliers": share} | ours | peers


def _peers(session: Session, x: Tensor, out: int) -> Row:
    """Microseconds of bf16, and of the plain int8 product, which takes more than 16 tokens."""
    tokens, channels = x.shape
    copies = session.pick(1, copies_beyond_cache(2 * out * channels) if tokens <= 128 else 1)
    dense = torch.randn(copies, out, channels, device=session.device, dtype=torch.bfloat16)
    b = x.bfloat16()
    found: Row = {"us, bf16": 1e6 * seconds([lambda w=w: b @ w.t() for w in dense], session.device), "us, _int_mm": None}  # fmt: skip
    if tokens > 16:
        codes = torch.randint(-127, 128, (2 * copies, out, channels), dtype=torch.int8, device=session.device)  # fmt: skip
        xi = codes[0, :1].expand(tokens, channels).contiguous()
        found["us, _int_mm"] = 1e6 * seconds([lambda w=w: torch._int_mm(xi, w.t()) for w in codes], session.device)  # fmt: skip
    return found


def _ours(session: Session, x: Tensor, out: int, share: float, heavy: bool, *, tma: bool) -> Row:
    """Microseconds of the quantizer and the product, with the blocks of a heavy-tailed input or of another one."""
    copies = session.pick(1, copies_beyond_cache(out * x.shape[1]) if len(x) <= 128 else 1)
    weights = [random_weight(out, x.shape[1], share, F16, session.device, heavy=heavy) for _ in range(copies)]  # fmt: skip
    weight = weights[0]
    q = quantized(x, weight)
    times = {"": seconds([lambda w=w: gemm(q, w) for w in weights], session.device)}
    if tma and (not session.on_gpu or launch.capability(session.device) >= 90):
        kind = configs.by_alignment("gemm", x.shape[1])
        row = configs.choose(kind, launch.capability(session.device), tokens=len(x), out=out)
        other = configs.with_tma(row)
        times["TMA"] = seconds([lambda w=w: gemm(q, w, config=other) for w in weights], session.device)  # fmt: skip
    took = seconds([lambda: quantized(x, weight)], session.device)
    return {
        "us": times[""] * 1e6, "TOPS": 2e-12 * x.shape[0] * x.shape[1] * out / times[""],
        "us, TMA": times["TMA"] * 1e6 if "TMA" in times else None,
        "us, quantizer": took * 1e6,
    }  # fmt: skip


def quantized(x: Tensor, weight: MixedWeight) -> QuantizedTokens:
    marks = {"index": weight.outlier_index, "is_outlier": weight.is_outlier}
    return quantize(x, **marks, threshold=weight.threshold, block=block_of(weight))


def ratio(row: Row, *, quantizer: bool = False) -> float:
    """Times cuBLAS's speed in bf16."""
    ours = row["us"] + (row["us, quantizer"] if quantizer else 0.0)
    return float(row["us, bf16"] / ours)
