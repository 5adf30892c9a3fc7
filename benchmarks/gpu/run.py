"""Everything about the GPU path that needs a GPU, in one command: correctness first, then speed.

    python -m benchmarks.gpu.run [--out results.json] [--quick]
    TRITON_INTERPRET=1 python -m benchmarks.gpu.run --tiny        rehearses it on a CPU; its times mean nothing

Prints a table for each part and writes one JSON. Speed is not reported when a kernel is wrong.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from tabulate import tabulate
from torch import Tensor

from int8conv.kernels import MixedWeight
from int8conv.kernels.gpu import attention, reference, sampling
from int8conv.kernels.gpu.gemm import gemm
from int8conv.kernels.gpu.quantize import QuantizedTokens, quantize
from int8conv.kernels.gpu.skinny import w8a16
from int8conv.runtime.gpu_decode import DecodeSteps

from .layers import SHAPES, random_tokens, random_weight
from .random_model import random_decoder
from .timing import copy_bandwidth, seconds

F16 = torch.float16
Row = dict[str, Any]


def quantized(x: Tensor, weight: MixedWeight, threshold: float | None) -> QuantizedTokens:
    return quantize(
        x, index=weight.outlier_index, is_outlier=weight.is_outlier, threshold=threshold
    )


def correctness(device: torch.device) -> list[Row]:
    """Each kernel against its reference on the CPU: largest error relative to the largest result."""
    rows = []
    for out, channels, tokens in ((96, 64, 1), (300, 4112, 17), (257, 1000, 64), (512, 4096, 200)):
        weight = random_weight(out, channels, 0.01, F16, device)
        x = random_tokens(tokens, channels, F16, device)
        x[:, :: max(channels // 7, 1)] *= 4  # some pass the threshold outside the stored columns
        host = MixedWeight(*(None if t is None else t.cpu() for t in (weight.codes, weight.scale, weight.outlier_index, weight.outlier_weight)), 6.0)  # type: ignore[arg-type]  # fmt: skip
        q, expected = quantized(x, weight, 6.0), quantized_reference(x.cpu(), host)
        rows.append(_row("quantize", tokens, out, channels, q.codes.cpu().float(), expected.codes.float()))  # fmt: skip
        rows.append(_row("gemm", tokens, out, channels, gemm(q, weight), reference.gemm(expected, host)))  # fmt: skip
        if tokens <= 64:
            rows.append(_row("w8a16", tokens, out, channels, w8a16(x, weight), reference.w8a16(x.cpu(), host)))  # fmt: skip
    q = random_tokens(4, 32 * 64, F16, device).view(4, 32, 64)
    keys, values = torch.randn(2, 4, 8, 300, 64, device=device).half()
    lengths = torch.tensor([1, 300, 77, 128], dtype=torch.int32, device=device)
    expected_y = reference.attend(q.cpu(), keys.cpu(), values.cpu(), lengths.cpu(), scale=0.125)
    rows.append(_row("attend", 4, 32, 64, attention.attend(q, keys, values, lengths, scale=0.125), expected_y))  # fmt: skip
    logits = torch.randn(2, 5000, device=device)
    columns = [torch.full((2,), v, dtype=d, device=device) for v, d in ((0.0, torch.float32), (0, torch.int32), (1.0, torch.float32), (0.0, torch.float32), (1, torch.int64))]  # fmt: skip
    found = sampling.sample(logits, sampling.Draws(*columns), lengths[:2])
    rows.append(_row("sample", 2, 5000, 1, found.float(), logits.argmax(1).float().cpu()))
    return rows


def quantized_reference(x: Tensor, weight: MixedWeight) -> QuantizedTokens:
    return reference.quantize(x, index=weight.outlier_index, is_outlier=weight.is_outlier, threshold=6.0)  # fmt: skip


def _row(kernel: str, tokens: int, out: int, channels: int, found: Tensor, expected: Tensor) -> Row:
    error = ((found.cpu().double() - expected.double()).abs().max() / expected.double().abs().max()).item()  # fmt: skip
    return {"kernel": kernel, "M": tokens, "N": out, "K": channels, "error": error, "right": error < 2e-3}  # fmt: skip


def gemm_speed(device: torch.device, models: list[str], tokens: list[int], shares: list[float]) -> list[Row]:  # fmt: skip
    """int8 GEMM with its quantiser, net on, against cuBLAS in bf16 and ``torch._int_mm``."""
    rows = []
    for model in models:
        for layer, (out, channels) in SHAPES[model].items():
            for m in tokens:
                x = random_tokens(m, channels, F16, device)
                dense = torch.randn(out, channels, device=device, dtype=torch.bfloat16)
                b = x.bfloat16()
                bf16 = seconds([lambda b=b, d=dense: b @ d.t()], device)
                codes = torch.randint(-127, 128, (out, channels), dtype=torch.int8, device=device)
                xi = codes.new_ones(m, channels)
                plain = seconds([lambda a=xi, w=codes: torch._int_mm(a, w.t())], device) if m > 16 else None  # fmt: skip
                for share in shares:
                    weight = random_weight(out, channels, share, F16, device)
                    times = {}
                    for net, threshold in (("off", None), ("on", 6.0)):
                        q = quantized(x, weight, threshold)
                        times[net] = seconds([lambda q=q, w=weight: gemm(q, w, dtype=F16)], device)
                        times[f"quantize {net}"] = seconds([lambda x=x, w=weight, t=threshold: quantized(x, w, t)], device)  # fmt: skip
                    rows.append({
                        "model": model, "layer": layer, "M": m, "N": out, "K": channels, "outliers": share,
                        "us": times["on"] * 1e6, "TOPS": 2e-12 * m * out * channels / times["on"],
                        "us, net off": times["off"] * 1e6, "us, quantiser": times["quantize on"] * 1e6,
                        "us, bf16": bf16 * 1e6, "us, _int_mm": None if plain is None else plain * 1e6,
                        "ratio to bf16": bf16 / times["on"],
                        "with quantiser": bf16 / (times["on"] + times["quantize on"]),
                    })  # fmt: skip
    return rows


def gemv_speed(device: torch.device, models: list[str], tokens: list[int], copy: float) -> list[Row]:  # fmt: skip
    """W8A16 for few tokens: bytes of weight a second against a copy's; weights rotated past the L2 cache."""
    rows = []
    for model in models:
        for layer, (out, channels) in SHAPES[model].items():
            count = max(2, -(-(256 << 20) // (out * channels))) if device.type == "cuda" else 2
            weights = [random_weight(out, channels, 0.001, F16, device) for _ in range(count)]
            nbytes = sum(t.nbytes for t in (weights[0].codes, weights[0].scale, weights[0].outlier_weight) if t is not None)  # fmt: skip
            for m in tokens:
                x = random_tokens(m, channels, F16, device)
                calls: list[Callable[[], object]] = [lambda w=w, x=x: w8a16(x, w) for w in weights]
                took = seconds(calls, device)
                rows.append({"model": model, "layer": layer, "M": m, "N": out, "K": channels, "us": took * 1e6,
                             "GB/s": nbytes / took * 1e-9, "share of copy": nbytes / took / copy})  # fmt: skip
    return rows


def end_to_end(device: torch.device, model: str, batches: list[int], prompt: int, steps: int, copy: float) -> list[Row]:  # fmt: skip
    """Random weights, the same graphs: int8 with 0.1 % outliers, and 16 bits."""
    rows = []
    for name, share in (("int8", 0.001), ("fp16", None)):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        decoder, nbytes = random_decoder(model, F16, device, share)
        for batch in batches:
            cache = decoder.kernels.cache(decoder.config, batch=batch, capacity=prompt + steps + 2, dtype=F16)  # fmt: skip
            ids = torch.randint(decoder.config.vocab_size, (batch, prompt), device=device)
            decoder.forward(ids[:, :2], decoder.kernels.cache(decoder.config, batch=batch, capacity=4, dtype=F16))  # fmt: skip
            started = _now(device)
            decoder.forward(ids, cache, last_only=True)
            prefill = _now(device) - started
            step = DecodeSteps(decoder, cache)
            step(ids[:, :1])
            eager_length = cache.length
            started = _now(device)
            for _ in range(steps):
                step(ids[:, :1])
            decode = (_now(device) - started) / steps
            assert cache.length == eager_length + steps
            kv = cache.nbytes * cache.length / cache.capacity
            rows.append({
                "weights": name, "batch": batch, "prefill tok/s": batch * prompt / prefill, "decode tok/s": batch / decode,
                "GB/s": (nbytes + kv) / decode * 1e-9, "share of copy": (nbytes + kv) / decode / copy,
                "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
            })  # fmt: skip
            del step, cache
        del decoder
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="one model, few sizes")
    parser.add_argument("--tiny", action="store_true", help="rehearse on a CPU")
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda")
    models = ["tiny"] if options.tiny else ["Llama-3.1-8B"] if options.quick else ["Llama-3.1-8B", "Llama-3.1-70B", "OPT-13B"]  # fmt: skip
    copy = copy_bandwidth(device, 1 << 20 if options.tiny else 1 << 30)
    result: dict[str, Any] = {
        "machine": platform.processor() if options.tiny else torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "copy GB/s": copy * 1e-9,
    }
    print(json.dumps(result))
    result["correctness"] = correctness(device)
    show("correctness", result["correctness"])
    wrong = [row for row in result["correctness"] if not row["right"]]
    if not wrong:
        sizes = [1, 17] if options.tiny else [16, 128, 2048] if options.quick else [1, 16, 64, 256, 1024, 2048, 8192]  # fmt: skip
        shares = [0.0, 0.001, 0.01]
        parts: dict[str, Callable[[], list[Row]]] = {
            "end to end": lambda: end_to_end(device, "tiny", [1, 2], 5, 2, copy) if options.tiny
            else end_to_end(device, "Llama-3.1-8B", [1, 8, 32], 512, 64, copy),
            "gemv": lambda: gemv_speed(device, models, [1, 3] if options.tiny else [1, 4, 16, 64], copy),
            "gemm": lambda: gemm_speed(device, models, sizes, shares[1:2] if options.quick or options.tiny else shares),
        }  # fmt: skip
        for name, part in parts.items():
            result[name] = part()
            show(name, result[name])
            _write(options.out, result)
    _write(options.out, result)
    sys.exit("a kernel is wrong: no speed is reported" if wrong else 0)


def show(name: str, rows: list[Row]) -> None:
    print(f"\n{name}\n" + tabulate(rows, headers="keys", floatfmt=".4g"), flush=True)


def _write(out: Path | None, result: dict[str, Any]) -> None:
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
