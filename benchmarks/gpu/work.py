"""What a recorded launch has to do: bytes to move, products to form, and how its programs divide that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tests.kernels.gpu.compiling import Recorded


@dataclass(frozen=True)
class Work:
    """Of one launch."""

    programs: int
    read: float
    """Bytes that have to come from memory."""
    written: float = 0.0
    trips: float = 0.0
    """Passes of a program through its main loops; 0: there is none."""
    trip_bytes: float = 0.0
    """Bytes of ``read`` that a program loads in one of them."""
    trip_products: float = 0.0
    """Multiply-adds on tensor cores in one of them."""
    int8: bool = False
    """Whether those are of int8."""
    cached: float = 0.0
    """Bytes that come from L2 in all."""
    after: float = 0.0
    """Bytes of them that a program reads when all others are done: the last one to arrive, which joins parts."""
    repeated: float = 0.0
    """Passes of a program through loops over a norm's channels, before the main loop; 0: there are none."""


def work_of(launched: Recorded, context: int = 1024) -> Work:
    """The work of a launch; ``context``: positions of every sequence in the cache, which is not in the arguments."""
    name, a = launched.kernel.__name__, launched.named
    programs = math.prod(launched.grid)
    if name == "attention_kernel":
        return _attention(a, programs, context)
    return _LINEARS[name](a, programs) if name in _LINEARS else _rest(a, programs, name)


def _size(x: object) -> int:
    return x.numel() * x.element_size() if isinstance(x, Tensor) else 0


def _weight(a: dict[str, Any]) -> int:
    return sum(_size(a.get(name)) for name in ("codes_w", "scale_w", "outlier_w", "bias"))


def _gemv(a: dict[str, Any], programs: int) -> Work:
    tile, trips = _two_passes(a)
    x = 2 * a["M"] * a["K"]
    read = _weight(a) + x + _size(a["residual"])
    norm = 0 if a["NORM"] == "none" else a["M"] * math.ceil(a["K"] / a["BLOCK"])
    return Work(
        programs, read, _size(a["out"]), trips, tile, tile * a["BLOCK_M"], cached=programs * x * (3 if norm else 1), repeated=norm,
    )  # fmt: skip


def _experts(a: dict[str, Any], programs: int) -> Work:
    tile, trips = _two_passes(a)
    slots = a["chosen"].numel()  # each reads a weight of its own
    return Work(programs, slots * _weight(a), _size(a["out"]), trips, tile, tile * 8, cached=programs * 2 * a["K"])  # fmt: skip


def _two_passes(a: dict[str, Any]) -> tuple[int, float]:
    """Bytes of weight in the loop's body, which has two passes, and how often it runs."""
    step = 64 * a["SLICES"] * a["UNROLL"]
    return 2 * a["ROWS"] * step, math.ceil(a["K"] / step) / 2


def _skinny(a: dict[str, Any], programs: int) -> Work:
    halves = 1 if a["ACTIVATION"] == "none" else 2
    trips = halves * math.ceil(a["K"] / a["SPLIT"] / a["BLOCK_K"])
    tile = a["BLOCK_N"] * a["BLOCK_K"]
    x = 2 * a["M"] * a["K"]
    sums = 8 * programs * halves * a["BLOCK_N"] * a["BLOCK_M"] if a["SPLIT"] > 1 else 0
    return Work(
        programs, _weight(a) + x + _size(a["residual"]), _size(a["out"]), trips, tile, tile * a["BLOCK_M"],
        cached=programs * trips * 2 * a["BLOCK_M"] * a["BLOCK_K"] + sums,
    )  # fmt: skip


def _gemm(a: dict[str, Any], programs: int) -> Work:
    m, n, k = a["BLOCK_M"], a["BLOCK_N"], a["BLOCK_K"]
    trips = math.ceil(a["K"] / k)
    read = _weight(a) + sum(_size(a[x]) for x in ("codes_x", "scale_x", "outliers", "residual"))
    return Work(programs, read, _size(a["out"]), trips, 0, m * n * k, True, programs * trips * (m + n) * k)  # fmt: skip


def _rows(a: dict[str, Any], programs: int) -> Work:
    """``published.rows_kernel``."""
    step = a["BLOCK_K"] * a["codes_w"].element_size()
    return Work(programs, _weight(a) + 2 * a["K"], _size(a["out"]), math.ceil(a["K"] / a["BLOCK_K"]), a["ROWS"] * step, cached=programs * 2 * a["K"])  # fmt: skip


def _attention(a: dict[str, Any], programs: int, context: int) -> Work:
    """Programs that have positions, and those that have the new token alone; the last of a head reads what all of them wrote."""
    keys, parts = a["keys"], a["PARTS"]
    wide = keys.element_size() * a["D"] + (2 if a["key_scales"] is not None else 0)
    step = math.ceil(math.ceil((context - 1) / parts) / a["BLOCK_S"])
    read = 2 * keys.shape[0] * a["kv_heads"] * context * wide
    busy = max(1, min(parts, math.ceil((context - 1) / (step * a["BLOCK_S"])) + 1))
    tile = a["BLOCK_S"] * a["BLOCK_D"] * a["ROWS"]
    sums = _size(a["partial"]) * busy / parts
    return Work(
        programs * busy // parts, read + sum(_size(a[x]) for x in ("q", "k", "v")), _size(a["y"]), step, 2 * a["BLOCK_S"] * wide, 2 * tile,
        cached=2 * sums, after=sums / (programs // parts),
    )  # fmt: skip


def _rest(a: dict[str, Any], programs: int, name: str) -> Work:
    """What passes over its input once, or from L2 again."""
    if name == "quantize_kernel":
        read = sum(_size(a[x]) for x in ("x", "times", "weight", "bias", "is_outlier"))
        return Work(programs, read, sum(_size(a[x]) for x in ("half", "codes", "scale", "outliers")))  # fmt: skip
    if name == "rotary_kernel":
        tokens = a["positions"].numel()
        heads = programs // max(tokens, 1)
        moved = 2 * programs * a["keys"].shape[3]
        return Work(programs, moved + 8 * heads, moved)
    if name == "sampling_kernel":
        return Work(programs, _size(a["logits"]), 8 * programs)
    return Work(programs, sum(_size(x) for x in a.values()))


_LINEARS = {
    "gemv_kernel": _gemv, "experts_kernel": _experts, "skinny_kernel": _skinny, "gemm_kernel": _gemm,
    "rows_kernel": _rows,
}  # fmt: skip


def loop_share(launched: Recorded) -> float | None:
    """Bytes of weight or cache that a thread stands for in one pass through the main loop: what instructions are counted per."""
    work = work_of(launched)
    return work.trip_bytes / (32 * launched.meta["num_warps"]) if work.trip_bytes else None
