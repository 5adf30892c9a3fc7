"""Every kernel on the device against float64 or its reference on the CPU; memory that kernels fill is poisoned first.

``error`` is in parts of what is allowed: for products 2e-6 of the sum of the terms' magnitudes and the rounding to 16 bits, for what
is not a sum of products a unit or two in the last place; codes, scales and counts have to be equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from int8conv.kernels.gpu import attention, configs, launch, reference, rotary, sampling
from int8conv.kernels.gpu.experts import ExpertWeights, chosen_experts
from int8conv.kernels.gpu.gemm import gemm
from int8conv.kernels.gpu.gemv import NORM_TOKENS
from int8conv.kernels.gpu.prologue import Prologue
from int8conv.kernels.gpu.quantize import HEAVY_BLOCK, SCALE_BLOCK, QuantizedTokens, apply, quantize
from int8conv.kernels.gpu.skinny import w8a16
from int8conv.kernels.weight import MixedWeight
from int8conv.runtime.decoder.quantized_cache import quantize_heads

from .layers import random_weight
from .session import F16, Row, Session

BF16 = torch.bfloat16
SUMMATION = 2e-6
HALF_STEP = {F16: 2.0**-11, BF16: 2.0**-8}


def rows(session: Session) -> list[Row]:
    """A line a kernel and variant."""
    torch.manual_seed(0)
    with poisoned():
        checks = [products, few_tokens, norms, mixtures, fused, rotations, attentions, draws]
        return [row for check in session.share(checks) for row in check(session)]


@contextmanager
def poisoned() -> Iterator[None]:
    """NaN, or a pattern, where no kernel has written."""
    real = launch.empty

    def empty(*shape: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        value = float("nan") if dtype.is_floating_point else 85
        return torch.full(shape, value, dtype=dtype, device=like.device)

    launch.empty = empty
    try:
        yield
    finally:
        launch.empty = real


def products(session: Session) -> Iterator[Row]:
    """``quantize`` bit for bit, ``gemm`` against float64."""
    full = [
        (1, 512, 4096, 0.01, F16), (17, 301, 4112, 0.01, F16), (33, 65, 1001, 0.05, BF16), (200, 512, 4096, 0.0, F16),
        (1100, 1024, 1024, 0.01, BF16), (70, 256, 14336, 0.002, F16),
    ]  # fmt: skip
    for tokens, out, channels, share, dtype in session.pick([(5, 33, 160, 0.05, F16), (17, 40, 65, 0.0, BF16)], full):  # fmt: skip
        weight = random_weight(out, channels, share, dtype, session.device)
        x = _tokens(tokens, channels, dtype, session.device)
        bias, residual = torch.randn(out).to(dtype), torch.randn(tokens, out).to(dtype)
        host = on_host(weight)
        for block in (SCALE_BLOCK, HEAVY_BLOCK):
            of = _about(tokens, out, channels, dtype, f"blocks of {block}")
            marks = {"index": weight.outlier_index, "is_outlier": weight.is_outlier}
            q = quantize(x, **marks, block=block)
            marks = {"index": host.outlier_index, "is_outlier": host.is_outlier}
            expected = reference.quantize(x.cpu(), **marks, block=block)
            yield _equal("quantize", of, q, expected)
            y = gemm(q, weight, bias.to(session.device), residual.to(session.device))
            truth, size = _gemm_truth(x.cpu(), expected, host)
            extra = bias.double() + residual.double()
            size = size + bias.double().abs() + residual.double().abs()
            yield _close("gemm", of, y, truth + extra, SUMMATION * size)
            if channels % 16 == 0 and (not session.on_gpu or launch.capability(session.device) >= 90):  # fmt: skip
                row = configs.choose("gemm", launch.capability(session.device), tokens=tokens, out=out)  # fmt: skip
                same = gemm(q, weight, bias.to(session.device), residual.to(session.device), config=configs.with_tma(row))  # fmt: skip
                yield _close("gemm, TMA", of, same, truth + extra, SUMMATION * size)
        yield _counted(_about(tokens, out, channels, dtype, "counts"), x)


def _counted(of: Row, x: Tensor) -> Row:
    """Values from a threshold on."""
    found, expected = (torch.zeros(2 + x.shape[1], dtype=torch.int64) for _ in range(2))
    found = found.to(x.device)
    quantize(x, threshold=6.0, counts=found)
    reference.quantize(x.cpu(), threshold=6.0, counts=expected)
    return _row("quantize", of, float((found.cpu() != expected).sum()))


def few_tokens(session: Session) -> Iterator[Row]:
    """``gemv`` and ``skinny`` against float64, plain and gated."""
    full = [
        (1, 4096, 4096, F16), (1, 28672, 4096, F16), (1, 257, 1001, BF16), (3, 512, 4096, F16), (16, 4096, 4096, BF16),
        (64, 1024, 14336, F16),
    ]  # fmt: skip
    for tokens, out, channels, dtype in session.pick([(1, 34, 160, F16), (5, 34, 65, BF16)], full):
        weight = random_weight(out, channels, 0.01, dtype, session.device)
        host, x = on_host(weight), _tokens(tokens, channels, dtype, session.device)
        kernel = "gemv" if tokens == 1 else "skinny"
        bias, residual = torch.randn(out).to(dtype), torch.randn(tokens, out).to(dtype)
        y = w8a16(x, weight, bias.to(session.device), residual.to(session.device))
        extra = bias.double() + residual.double()
        truth, size = x.cpu().double() @ _dense(host).t(), x.cpu().double().abs() @ _dense(host).abs().t()  # fmt: skip
        size = size + bias.double().abs() + residual.double().abs()
        of = _about(tokens, out, channels, dtype, "bias, residual")
        yield _close(kernel, of, y, truth + extra, SUMMATION * size)
        if out % 2 == 0:
            gate, up = truth.chunk(2, dim=1)
            gate_size, up_size = size.chunk(2, dim=1)
            found = w8a16(x, weight, activation="silu")
            of = _about(tokens, out, channels, dtype, "silu(gate) up")
            allowed = 4 * SUMMATION * (gate_size * up_size + 1)
            yield _close(kernel, of, found, torch.nn.functional.silu(gate) * up, allowed)


def norms(session: Session) -> Iterator[Row]:
    """Norms in the prologue of ``gemv``: equal to a launch of their own before it, bit for bit."""
    out, channels = session.pick((34, 160), (4096, 4096))
    for dtype in (F16, BF16):
        weight = random_weight(out, channels, 0.01, dtype, session.device)
        gain, shift = (torch.randn(channels, device=session.device).to(dtype) for _ in range(2))
        for tokens in (1, NORM_TOKENS):
            x = _tokens(tokens, channels, dtype, session.device)
            for norm in (Prologue("rms", gain, eps=1e-5), Prologue("layer", gain, shift, 1e-5)):
                of = _about(tokens, out, channels, dtype, f"{norm.norm} in the prologue")
                wanted = w8a16(apply(x, norm), weight, activation="silu")
                found = w8a16(x, weight, activation="silu", norm=norm)
                yield _row("gemv", of, float((found != wanted).sum()))


def mixtures(session: Session) -> Iterator[Row]:
    """``chosen_experts``: two of five experts a token, plain and gated."""
    tokens, out, channels = session.pick((3, 34, 160), (9, 2048, 1024))
    for dtype in (F16, BF16):
        weights = [random_weight(out, channels, 0.02 * i, dtype, session.device) for i in range(5)]
        full = [_dense(on_host(weight)) for weight in weights]
        x = _tokens(tokens, channels, dtype, session.device)
        chosen = torch.stack([torch.randperm(5)[:2] for _ in range(tokens)]).flatten()
        pairs = [(x[i // 2].cpu().double(), full[e]) for i, e in enumerate(chosen.tolist())]
        truth = torch.stack([row @ weight.t() for row, weight in pairs])
        size = torch.stack([row.abs() @ weight.abs().t() for row, weight in pairs])
        table = ExpertWeights.of(weights)
        there = chosen.to(session.device)
        of = _about(tokens, out, channels, dtype, "plain")
        yield _close("experts", of, chosen_experts(x, table, there), truth, SUMMATION * size)
        (gate, up), (gate_size, up_size) = truth.chunk(2, dim=1), size.chunk(2, dim=1)
        found = chosen_experts(x, table, there, activation="silu")
        allowed = 4 * SUMMATION * (gate_size * up_size + 1)
        of = _about(tokens, out, channels, dtype, "silu(gate) up")
        yield _close("experts", of, found, torch.nn.functional.silu(gate) * up, allowed)


def fused(session: Session) -> Iterator[Row]:
    """Norms and activation functions before the quantizer: within a unit in the last place, then quantized bit for bit."""
    tokens, channels = session.pick((3, 130), (33, 4112))
    for dtype in (F16, BF16):
        x = _tokens(tokens, channels, dtype, session.device)
        gain, shift, other = (torch.randn(n, device=session.device).to(dtype) for n in (channels, channels, x.shape))  # fmt: skip
        variants = {
            "rms": Prologue(norm="rms", weight=gain, eps=1e-5),
            "layer": Prologue(norm="layer", weight=gain, bias=shift, eps=1e-5),
            "silu x up": Prologue(activation="silu", times=other), "gelu": Prologue(activation="gelu"),
            "gelu_tanh x up": Prologue(activation="gelu_tanh", times=other), "relu": Prologue(activation="relu"),
        }  # fmt: skip
        for name, prologue in variants.items():
            of = _about(tokens, 0, channels, dtype, name)
            found = apply(x, prologue)
            expected = reference.apply(x.cpu(), _moved(prologue))
            step = 4 * HALF_STEP[dtype] * expected.double().abs() + 2.0**-24
            yield _close("apply", of, found, expected.double(), step)
            q = quantize(x, prologue)
            yield _equal("quantize", of, q, reference.quantize(found.cpu()))


def rotations(session: Session) -> Iterator[Row]:
    """Queries and the whole cache after ``rotate_and_store``."""
    batch, tokens, heads, kv_heads, size = session.pick((2, 3, 4, 2, 16), (3, 37, 32, 8, 128))
    for dtype in (F16, BF16):
        for interleaved in (False, True):
            qkv = torch.randn(batch * tokens, (heads + 2 * kv_heads) * size, device=session.device).to(dtype)  # fmt: skip
            q, k, v = qkv.split([heads * size, kv_heads * size, kv_heads * size], dim=1)
            angles = torch.arange(64)[:, None] * 10.0 ** -torch.linspace(0, 4, size // 2)
            tables = (angles.cos().contiguous(), angles.sin().contiguous())
            at = (torch.arange(tokens) + torch.arange(batch)[:, None] * 5).flatten().int()
            cache = torch.full((2, batch, kv_heads, 48, size), 7.0).to(dtype)
            there = cache.to(session.device)
            cos_sin = (tables[0].to(session.device), tables[1].to(session.device))
            found = rotary.rotate_and_store(q, k, v, cos_sin, at.to(session.device), *there, interleaved=interleaved)  # fmt: skip
            expected = reference.rotate_and_store(q.cpu(), k.cpu(), v.cpu(), tables, at, *cache, interleaved=interleaved)  # fmt: skip
            step = torch.tensor(2 * HALF_STEP[dtype] * 1.5 * q.double().abs().max().item())
            of = _about(batch * tokens, heads, size, dtype, "neighbours" if interleaved else "halves")  # fmt: skip
            yield _close("rotate", of, found, expected.double(), step)
            yield _close("store", of, there, cache.double(), step)
            codes = torch.zeros_like(there, dtype=torch.int8)
            scales = torch.zeros_like(
                there[..., :1], dtype=F16, memory_format=torch.contiguous_format
            )
            rotary.rotate_and_store(q, k, v, cos_sin, at.to(session.device), *codes, scales=(scales[0], scales[1]), interleaved=interleaved)  # fmt: skip
            yield _row("store, int8", of, _unequal_codes(codes, scales, there))


def attentions(session: Session) -> Iterator[Row]:
    """``attend`` with sequences of different length; what lies behind them in the cache is NaN, or has infinite scales."""
    heads, kv_heads, size, capacity = session.pick((4, 2, 16, 40), (32, 8, 128, 3000))
    lengths = session.pick([1, 40, 17], [1, 3000, 777, 128])
    batch, filled = len(lengths), torch.tensor(lengths, dtype=torch.int32)
    variants = {
        "plain": {}, "window": {"window": capacity // 3}, "softcap": {"softcap": 2.0},
        "alibi": {"slopes": torch.linspace(0.01, 0.5, heads)},
    }  # fmt: skip
    for dtype in (F16, BF16):
        qkv = [torch.randn(batch, n * size).to(dtype) for n in (heads, kv_heads, kv_heads)]
        cache = torch.randn(2, batch, kv_heads, capacity, size).to(dtype)
        for i, length in enumerate(lengths):
            cache[:, i, :, length - 1 :] = float("nan")
        for name, options in variants.items():
            yield _attention("attend", name, session, qkv, filled, list(cache), options)
        codes, scales = zip(*(quantize_heads(x.nan_to_num()) for x in cache), strict=True)
        for scale in scales:
            scale[cache[0][..., :1].isnan()] = float("inf")
        stored = [*(c.to(torch.int8) for c in codes), *scales]
        yield _attention("attend, int8", "plain", session, qkv, filled, stored, {})


def _attention(
    kernel: str, variant: str, session: Session, qkv: list[Tensor], filled: Tensor, cache: list[Tensor], options: dict[str, Any],
) -> Row:  # fmt: skip
    """Output and cache; without rotation, which ``rotations`` checks, the cache is equal bit for bit."""
    q, size = qkv[0], cache[0].shape[3]
    there = [x.to(session.device) for x in (*qkv, filled, *cache)]
    moved = {k: v.to(session.device) if isinstance(v, Tensor) else v for k, v in options.items()}
    own = [x.clone() for x in cache]
    for each, how in ((there[4:], moved), (own, options)):
        if len(cache) > 2:
            how["scales"] = (each[2], each[3])
    found = attention.attend(*there[:3], None, there[3], *there[4:6], scale=size**-0.5, **moved)
    expected = reference.attend(q, qkv[1], qkv[2], None, filled, *own[:2], scale=size**-0.5, **options)  # fmt: skip
    values = own[1].float() * (own[3].float() if len(cache) > 2 else 1.0)
    largest = values[values.isfinite()].abs().max().item()
    step = torch.tensor((3 * HALF_STEP[q.dtype] + 1e-5) * largest)
    row = _close(kernel, _about(len(q), q.shape[1] // size, size, q.dtype, variant), found, expected.double(), step)  # fmt: skip
    same = all(torch.equal(a.cpu().nan_to_num(), b.nan_to_num()) for a, b in zip(there[4:], own, strict=True))  # fmt: skip
    return row if same else row | {"error": float("inf"), "right": False}


def _unequal_codes(codes: Tensor, scales: Tensor, wide: Tensor) -> float:
    """How many codes and scales are not those of what a 16-bit cache has, where it was written."""
    expected, each = quantize_heads(wide)
    written = (wide != 7).any(-1, keepdim=True)
    return float(((codes != expected) & written).sum() + ((scales != each) & written).sum())


def draws(session: Session) -> Iterator[Row]:
    """Greedy draws are the maximum; others come from what top-k, top-p and min-p keep, the same each time."""
    vocab, batch = session.pick((300, 4), (128256, 32))
    logits = torch.randn(batch, vocab) * 3
    settings = {"greedy": (0.0, 0, 1.0, 0.0), "top-k": (1.0, 20, 1.0, 0.0), "top-p": (0.7, 0, 0.9, 0.0), "min-p": (1.5, 0, 1.0, 0.05)}  # fmt: skip
    positions = torch.arange(batch, dtype=torch.int32, device=session.device)
    kinds = (torch.float32, torch.int32, torch.float32, torch.float32)
    for name, values in settings.items():
        columns = [torch.full((batch,), v, dtype=d, device=session.device) for v, d in zip(values, kinds, strict=True)]  # fmt: skip
        seeds = torch.arange(batch, device=session.device)
        how = sampling.Draws(*columns, seeds)
        found = sampling.sample(logits.to(session.device), how, positions)
        again = sampling.sample(logits.to(session.device), how, positions)
        wrong = int((found != again).sum())
        for row, token in zip(logits, found.tolist(), strict=True):
            wrong += token != row.argmax() if name == "greedy" else not _kept(row, token, values)
        yield _row("sample", _about(batch, vocab, 0, torch.float32, name), float(wrong))


def _kept(logits: Tensor, token: int, values: tuple[float, int, float, float]) -> bool:
    """Whether a token may be drawn; a border that float32 sums move by 1e-4 is let pass."""
    temperature, top_k, top_p, min_p = values
    shares = (logits.double() / temperature).softmax(-1)
    better = logits > logits[token]
    if top_k and int(better.sum()) >= top_k:
        return False
    return bool(shares[better].sum() < top_p + 1e-4 and shares[token] >= (min_p - 1e-4) * shares.max())  # fmt: skip


def on_host(weight: MixedWeight) -> MixedWeight:
    moved = {f.name: getattr(weight, f.name) for f in fields(weight)}
    return MixedWeight(**{k: v.cpu() if isinstance(v, Tensor) else v for k, v in moved.items()})


def _moved(prologue: Prologue) -> Prologue:
    values = {f.name: getattr(prologue, f.name) for f in fields(prologue)}
    return Prologue(**{k: v.cpu() if isinstance(v, Tensor) else v for k, v in values.items()})


def _tokens(tokens: int, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normal values, one of a hundred large, the second token zero."""
    x = torch.randn(tokens, channels)
    x[torch.rand(tokens, channels) < 0.01] = 25.0
    if tokens > 2:
        x[1] = 0
    return x.to(dtype).to(device)


def _dense(weight: MixedWeight) -> Tensor:
    """float64 ``[out, in]``."""
    full = weight.codes.double() * weight.scale.double()[:, None]
    if weight.outlier_index is not None and weight.outlier_weight is not None:
        full[:, weight.outlier_index.long()] = weight.outlier_weight.double()
    return full


def _gemm_truth(x: Tensor, q: QuantizedTokens, weight: MixedWeight) -> tuple[Tensor, Tensor]:
    """The formula in float64, and the sum of its terms' magnitudes."""
    values = reference.values_of(q)
    if weight.outlier_index is not None:
        stored = weight.outlier_index.long()
        values[:, stored] = x.double()[:, stored]
    full = _dense(weight)
    return values @ full.t(), values.abs() @ full.abs().t()


def _about(tokens: int, out: int, channels: int, dtype: torch.dtype, variant: str) -> Row:
    return {"M": tokens, "N": out, "K": channels, "dtype": str(dtype).removeprefix("torch."), "variant": variant}  # fmt: skip


def _close(kernel: str, of: Row, found: Tensor, truth: Tensor, allowed: Tensor) -> Row:
    y = found.cpu().double().view(truth.shape)
    smallest = 2.0**-25 if found.dtype == F16 else 1e-30
    allowed = allowed + HALF_STEP[found.dtype] * truth.abs() + smallest
    return _row(kernel, of, ((y - truth).abs() / allowed).max().item())


def _equal(kernel: str, of: Row, found: QuantizedTokens, expected: QuantizedTokens) -> Row:
    pairs = [(getattr(found, n), getattr(expected, n)) for n in ("codes", "scale", "outliers")]  # fmt: skip
    same = all((a is None) == (b is None) and (a is None or torch.equal(a.cpu(), b)) for a, b in pairs)  # fmt: skip
    return _row(kernel, of, 0.0 if same else float("inf"))


def _row(kernel: str, of: Row, error: float) -> Row:
    return {"kernel": kernel} | of | {"error": error, "right": error <= 1.001}
