"""Steps and prompts of whole models: the sum of the predictions of what they launch, beside 16 bits and the physical limit."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from int8conv.runtime.decoder.decoder import Decoder
from tests.kernels.gpu.compiling import Binary, Recorded, compile_for, specialize

from . import hardware as H
from .calls import Call, Calls, Operator, cache_of, model_of, prompt_of, step_of
from .hardware import Gpu
from .predict import predict
from .random_model import CONFIGS
from .work import work_of

FIXED = H.NODE + 2 * H.CHAIN * H.CACHED_LATENCY
SHARE = 0.01
"""Outlier columns per input: the converter's largest."""
_compiled: dict[str, Binary] = {}


def compiled(launched: Recorded, capability: int) -> Binary:
    """Compiled once for all launches that Triton does not tell apart."""
    found = specialize(launched)
    key = json.dumps([capability, launched.kernel.__name__, found.signature, found.constants, sorted(found.attributes), launched.meta], default=str)  # fmt: skip
    if key not in _compiled:
        _compiled[key] = compile_for(launched, capability)
    return _compiled[key]


@dataclass(frozen=True)
class Total:
    """Seconds of everything, and what they would be otherwise."""

    seconds: float
    half: float
    """Of the same launches with matrices of 16 bits, at the rate of memory or of tensor cores, and nothing else in their way."""
    limit: float
    """Bytes that have to be read, at the rate of memory; or products at the rate of tensor cores."""
    launches: int
    linears: float = 0.0
    linears_half: float = 0.0
    """The matrices of the layers alone, quantizers included."""


def add(totals: Iterable[tuple[int, Total]]) -> Total:
    pairs = list(totals)
    names = ("seconds", "half", "limit", "launches", "linears", "linears_half")
    return Total(*(sum(times * getattr(t, name) for times, t in pairs) for name in names))


@functools.cache
def step(
    gpu: Gpu, model: str, batch: int, context: int, kv: torch.dtype | None = None, *, int8_head: bool = False
) -> Total:  # fmt: skip
    """One token per sequence."""

    def calls(layers: int) -> Calls:
        decoder = _model(model, layers, int8_head)
        return step_of(decoder, cache_of(decoder, batch, context, kv), gpu.capability, context)

    return _whole(gpu, model, calls, context)


@functools.cache
def prompt(gpu: Gpu, model: str, tokens: int) -> Total:
    return _whole(gpu, model, lambda layers: prompt_of(_model(model, layers), gpu.capability, tokens=tokens), tokens)  # fmt: skip


@functools.cache
def _model(name: str, layers: int, int8_head: bool = False) -> Decoder:
    return model_of(name, torch.float16, SHARE, layers, int8_head=int8_head)


def _whole(gpu: Gpu, model: str, calls: Callable[[int], Calls], context: int) -> Total:
    """From models of one and of two layers, as all layers are alike."""
    one, two = (of(gpu, calls(layers), context) for layers in (1, 2))
    layers = CONFIGS[model]["num_hidden_layers"]
    return add([(layers - 1, two), (2 - layers, one)])


def of(gpu: Gpu, calls: Calls, context: int) -> Total:
    """The sum of what was launched."""
    return add((1, _one(gpu, call, context)) for call in calls.found)


def _one(gpu: Gpu, call: Call, context: int) -> Total:
    if isinstance(call, Operator):
        seconds, limit = operator_seconds(gpu, call)
        return Total(seconds, seconds, limit, 1)
    found = predict(gpu, call, compiled(call, gpu.capability), context)
    work, name = work_of(call, context), call.kernel.__name__
    limit = work.read / gpu.memory
    if name in ("gemv_kernel", "skinny_kernel"):
        half = FIXED + half_rows(gpu, call)
        return Total(found.seconds, half, limit, 1, found.seconds, half)
    if name == "gemm_kernel":
        half = half_seconds(gpu, call)
        products = call.named["M"] * call.named["N"] * call.named["K"]
        limit = max(limit, products / (gpu.int8 * gpu.cores * gpu.clock))
        return Total(found.seconds, half, limit, 1, found.seconds, half)
    if name == "quantize_kernel" and call.named["codes"] is not None:
        return Total(found.seconds, _norm_alone(gpu, call), 0.0, 1, found.seconds, 0.0)
    return Total(found.seconds, found.seconds, limit if name == "attention_kernel" else 0.0, 1)


def _norm_alone(gpu: Gpu, call: Recorded) -> float:
    """What 16 bits have in the quantizer's place: its norm or activation function, or nothing."""
    a = call.named
    if a["NORM"] == "none" and a["ACTIVATION"] == "none":
        return 0.0
    moved = (4 if a["times"] is None else 6) * a["x"].numel()
    return FIXED + moved / gpu.memory


def half_rows(gpu: Gpu, call: Recorded) -> float:
    """Seconds of a product of few tokens in 16 bits: a read of the matrix."""
    a = call.named
    halves = 1 if a["ACTIVATION"] == "none" else 2
    weights = halves * a["N"] * a["K"]
    tensor = weights * max(a["M"], 8) / (gpu.half * gpu.cores * gpu.clock * H.TENSOR_SHARE)
    return max((2 * weights + 2 * a["M"] * (a["K"] + a["N"])) / gpu.memory, tensor)


def half_seconds(gpu: Gpu, call: Recorded) -> float:
    """A product of many tokens in 16 bits: 128 x 256 tiles without other instructions in their loop."""
    a = call.named
    tokens, out, channels = a["M"], a["N"], a["K"]
    rate = gpu.half * H.TENSOR_SHARE
    rounds = math.ceil(math.ceil(tokens / 128) * math.ceil(out / 256) / gpu.cores)
    smaller = math.ceil(math.ceil(tokens / 128) * math.ceil(out / 128) / gpu.cores) / 2
    tensor = min(rounds, smaller) * 128 * 256 * channels / rate / gpu.clock
    shared = H.CLUSTER if gpu.capability >= 90 else 1
    cache = 2 * tokens * out * channels * (1 / 128 + 1 / 256) / shared / gpu.cache
    memory = 2 * (out * channels + tokens * (channels + out)) / gpu.memory
    return max(tensor, cache, memory) + FIXED


def operator_seconds(gpu: Gpu, call: Operator) -> tuple[float, float]:
    """Seconds of one of PyTorch's kernels, and the least that they could be."""
    read, rate = call.read, gpu.half * gpu.cores * gpu.clock
    if call.name in ("embedding", "index_select", "arange", "zeros"):
        read = call.written
    memory = (read + call.written) / gpu.memory
    if call.query is not None:
        batch, heads, tokens, size = call.query
        products = (
            batch * heads * tokens * call.shapes[1][2] * size
        )  # half of both, as it is causal
        return FIXED + max(memory, products / (rate * H.ATTENTION_SHARE)), products / rate
    if call.name in ("linear", "mm", "addmm"):
        products = call.shapes[0][-2] * math.prod(call.shapes[1])
        return FIXED + max(memory, products / (rate * H.TENSOR_SHARE)), memory
    return FIXED + memory, 0.0
