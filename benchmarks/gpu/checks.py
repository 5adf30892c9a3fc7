"""What the kernels and the runtime are held to on a GPU: wanted, found, and whether it holds; "-" where it was not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .gemm import ratio
from .session import Row

Results = dict[str, list[Row]]
Check = tuple[str, Callable[[Results], tuple[str, bool] | None]]
BITSANDBYTES = "bitsandbytes int8, threshold 6.0"


def checked(results: Results, *, tiny: bool = False) -> list[Row]:
    """A line a check; of a rehearsal's figures only those that are no speeds or sizes are judged."""
    lines = []
    for wanted, check in CHECKS:
        found = check(results)
        judged = found is not None and not (tiny and check not in (_kernels, _sanitizer, _graphs))
        holds = "-" if not judged or found is None else "yes" if found[1] else "NO"
        lines.append({"wanted": wanted, "found": found[0] if found else "not measured", "holds": holds})  # fmt: skip
    return lines


def _rows(results: Results, *sections: str, **values: Any) -> list[Row]:
    """The lines that were measured and have these values."""
    found = [row for section in sections for row in results.get(section, ()) if "skipped" not in row]  # fmt: skip
    return [row for row in found if all(row.get(k) == v for k, v in values.items())]


def _least(values: Iterable[float], wanted: float, unit: str = "x") -> tuple[str, bool] | None:
    values = list(values)
    if not values:
        return None
    scale, sign = (100, "%") if unit == "%" else (1, unit)
    low, high = min(values), max(values)
    found = f"{scale * low:.3g}{sign}" if len(values) == 1 else f"{scale * low:.3g} to {scale * high:.3g}{sign}"  # fmt: skip
    return found, low >= wanted


def _most(values: Iterable[float], wanted: float, unit: str = "x") -> tuple[str, bool] | None:
    values = list(values)
    found = _least(values, 0.0, unit)
    return None if found is None else (found[0], max(values) <= wanted)


def _kernels(results: Results) -> tuple[str, bool] | None:
    found = _rows(results, "correctness")
    wrong = sorted({row["kernel"] for row in found if not row["right"]})
    text = f"{len(found)} of {len(found)}" if not wrong else f"wrong: {', '.join(wrong)}"
    return (text, not wrong) if found else None


def _sanitizer(results: Results) -> tuple[str, bool] | None:
    found = _rows(results, "sanitizer")
    errors = sum(row["errors"] for row in found)
    return (f"{errors} errors ({', '.join(row['tool'] for row in found)})", errors == 0) if found else None  # fmt: skip


def _graphs(results: Results) -> tuple[str, bool] | None:
    found = _rows(results, "graphs")
    equal = sum(row["equal"] for row in found)
    return (f"{equal} of {len(found)} equal", equal == len(found)) if found else None


def _gemm(results: Results, wanted: float, *, quantizer: bool = False) -> tuple[str, bool] | None:
    found = _rows(results, "gemm", "gemm, other models", outliers=0.001)
    large = [row for row in found if row["M"] >= 2048 and min(row["N"], row["K"]) >= 4096]
    return _least((ratio(row, quantizer=quantizer) for row in large), wanted)


def _gemv(results: Results, wanted: float, *, small: bool) -> tuple[str, bool] | None:
    found = _rows(results, "gemv", M=1)
    chosen = [row for row in found if (row["N"] == row["K"] == 4096 if small else row["MB"] >= 56)]
    return _least((row["share of copy"] for row in chosen), wanted, "%")


def _skinny(results: Results) -> tuple[str, bool] | None:
    found = _rows(results, "gemv")
    one = {(row["N"], row["K"]): row["us"] for row in found if row["M"] == 1}
    few = [row for row in found if 1 < row["M"] <= 16 and (row["N"], row["K"]) in one]
    return _most((row["us"] / one[row["N"], row["K"]] for row in few), 1.2)


def _decode(results: Results, runtime: str, weights: str | None, batch: int) -> float | None:
    values = {"runtime": runtime, "batch": batch} | ({"weights": weights} if weights else {})
    found = _rows(results, "end to end", "peers", **values)
    return found[0]["decode tok/s"] if found else None


def _faster(results: Results, peer: str, batch: int, wanted: float) -> tuple[str, bool] | None:
    """int8 against fp16 of this runtime, or against a peer."""
    ours = _decode(results, "int8conv", "int8", batch)
    theirs = _decode(results, "int8conv", "fp16", batch) if peer == "fp16" else _decode(results, peer, None, batch)  # fmt: skip
    if ours is None or theirs is None:
        return None
    return f"{ours / theirs:.2f}x ({ours:.0f} against {theirs:.0f} tok/s)", ours / theirs >= wanted


def _bandwidth(results: Results, wanted: float) -> tuple[str, bool] | None:
    found = _rows(results, "end to end", weights="int8", batch=1)
    return _least((row["share of copy"] for row in found), wanted, "%")


def _cost(results: Results) -> tuple[str, bool] | None:
    found = _rows(results, "cost")
    chosen = [row["cost %"] / 100 for row in found if row["with"] == "0.1 % outliers"]
    return _most(chosen, 0.05, "%")


def _loading(results: Results, wanted: float) -> tuple[str, bool] | None:
    found = _rows(results, "loading", readers="default")
    return _least((row["share of plain"] for row in found), wanted, "%")


def _memory(results: Results) -> tuple[str, bool] | None:
    found = [row["measured / predicted"] for row in _rows(results, "memory")]
    ratios = [ratio for ratio in found if ratio is not None]
    text = _least(ratios, 0.0)
    return None if text is None else (text[0], all(abs(ratio - 1) <= 0.03 for ratio in ratios))


CHECKS: list[Check] = [
    ("every kernel correct on the device", _kernels),
    ("compute-sanitizer clean", _sanitizer),
    ("CUDA graph replay equals eager", _graphs),
    ("GEMM, M >= 2048, K, N >= 4096, 0.1 % outliers: >= 1.4x cuBLAS bf16", lambda r: _gemm(r, 1.4)),
    ("the same, aim: >= 1.6x", lambda r: _gemm(r, 1.6)),
    ("the same with the quantizer's time: >= 1.4x", lambda r: _gemm(r, 1.4, quantizer=True)),
    ("W8A16, M = 1, matrices of 56 MB and more: >= 85 % of the copy", lambda r: _gemv(r, 0.85, small=False)),
    ("W8A16, M = 1, 4096 x 4096: >= 60 % of the copy", lambda r: _gemv(r, 0.60, small=True)),
    ("W8A16, M <= 16: <= 1.2x of M = 1", _skinny),
    ("8B, batch 1, decode: >= 1.6x fp16 of this runtime", lambda r: _faster(r, "fp16", 1, 1.6)),
    ("8B, batch 1, decode: >= 10x bitsandbytes LLM.int8()", lambda r: _faster(r, BITSANDBYTES, 1, 10.0)),
    ("8B, batch 1, decode: >= 70 % of the bandwidth limit", lambda r: _bandwidth(r, 0.70)),
    ("the same, aim: >= 85 %", lambda r: _bandwidth(r, 0.85)),
    ("8B, batch 32, decode: ahead of 16 bits in this runtime", lambda r: _faster(r, "fp16", 32, 1.0)),
    ("8B, batch 32, decode: ahead of bitsandbytes LLM.int8()", lambda r: _faster(r, BITSANDBYTES, 32, 1.0)),
    ("0.1 % outliers: <= 5 % of the layer's time", _cost),
    ("loading from the page cache: >= 60 % of a plain pinned copy", lambda r: _loading(r, 0.60)),
    ("the same, aim: >= 85 %", lambda r: _loading(r, 0.85)),
    ("peak memory within 3 % of footprint's prediction", _memory),
]  # fmt: skip
