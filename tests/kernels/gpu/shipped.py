"""Every launch that the package can make, by configuration and variant, compiled for GPUs that are not there.

``python -m tests.kernels.gpu.shipped`` compiles all of them; with ``--subset`` one variant of every configuration for one GPU of each
instruction set, as the test does. Prints one line of JSON for each. Any installed Triton from 3.6 on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.sass import main_loops, whole
from benchmarks.gpu.work import loop_share
from int8conv.kernels.gpu import (
    attention,
    configs,
    experts,
    gemm,
    quantize,
    rotary,
    sampling,
    skinny,
)
from int8conv.kernels.gpu.prologue import NO_PROLOGUE, Prologue
from int8conv.kernels.gpu.quantize import QuantizedTokens
from int8conv.kernels.weight import MixedWeight

from .compiling import compile_for, recording

F16, BF16, F32, I8, I32 = torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int32


def empty(*shape: int, dtype: torch.dtype = F16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Case:
    """A launch: kernel, GPU, which configuration of the table, variant."""

    kernel: str
    capability: int
    row: int
    variant: str


@dataclass
class Compiled:
    """What the test looks at."""

    case: Case
    kernel: str
    registers: int
    spilled: int
    shared: int
    loads16: int
    """SASS loads of 16 bytes a thread."""
    copies: int
    """Asynchronous copies to shared memory by threads."""
    bulk_copies: int
    """The same by the tensor memory accelerator."""
    int8_dots: int
    half_dots: int
    ptx: list[str]
    per_byte: float | None
    """Instructions of the main loop per byte of weight or cache."""
    barriers: int
    """Of the main loop."""
    narrow_loads: int
    """Loads of less than 16 bytes in the main loop."""
    loop_dots: list[str]
    """Tensor core instructions of the main loop."""
    fences: int


def weight(out: int, channels: int, k: int, dtype: torch.dtype) -> MixedWeight:
    index = empty(k, dtype=I32) if k else None
    return MixedWeight(
        empty(out, channels, dtype=I8), empty(out, dtype=F32), index,
        empty(out, k, dtype=dtype) if k else None, 6.0,
    )  # fmt: skip


def run_gemm(row: Any, dtype: torch.dtype, channels: int, k: int, bias: bool, residual: bool, block: int) -> None:  # fmt: skip
    tokens, out = min(row.get("max_tokens", 2048), 2048), 4096
    x = QuantizedTokens(
        empty(tokens, channels, dtype=I8), empty(-(-channels // block), tokens, dtype=F32),
        empty(tokens, k, dtype=dtype) if k else None, dtype, block,
    )  # fmt: skip
    added = empty(out, dtype=dtype) if bias else None
    rest = empty(tokens, out, dtype=dtype) if residual else None
    gemm.gemm(x, weight(out, channels, k, dtype), added, rest, config=row)


def run_w8a16(row: Any, tokens: int, dtype: torch.dtype, channels: int, activation: str, norm: Prologue = NO_PROLOGUE) -> None:  # fmt: skip
    out = 4096 if activation == "none" else 8192
    w = weight(out, channels, 32, dtype)
    residual = empty(tokens, 4096, dtype=dtype) if norm.is_empty else None
    skinny.w8a16(empty(tokens, channels, dtype=dtype), w, empty(out, dtype=dtype), residual, activation=activation, norm=norm, config=row)  # fmt: skip


def run_experts(row: Any, dtype: torch.dtype, channels: int, activation: str) -> None:
    """The launcher with a table that nobody made: it does not look into it."""
    w = weight(4096 if activation == "none" else 8192, channels, 32, dtype)
    weights = experts.ExpertWeights((w,), w, empty(8, 5, dtype=torch.int64))
    chosen = empty(4, dtype=torch.int64)
    experts.chosen_experts(empty(2, channels, dtype=dtype), weights, chosen, activation=activation, config=row)  # fmt: skip


def run_attention(row: Any, dtype: torch.dtype, size: int, *, int8: bool = False, rotated: int | None = None, **options: Any) -> None:  # fmt: skip
    cache = empty(2, 8, 4096, size, dtype=I8 if int8 else dtype)
    scales = (empty(2, 8, 4096, 1),) * 2 if int8 else None
    qkv = empty(2, 48 * size, dtype=dtype).split([32 * size, 8 * size, 8 * size], 1)
    tables = (empty(4096, (size if rotated is None else rotated) // 2, dtype=F32),) * 2
    rope = None if rotated == 0 else tables
    attention.attend(*qkv, rope, empty(2, dtype=I32), cache, cache, scale=0.1, scales=scales, config=row, **options)  # fmt: skip


def run_rotary(dtype: torch.dtype, size: int, rotated: int, interleaved: bool, int8: bool = False) -> None:  # fmt: skip
    cache = empty(2, 8, 4096, size, dtype=I8 if int8 else dtype)
    tables = empty(4096, rotated // 2, dtype=F32)
    scales = (empty(2, 8, 4096, 1),) * 2 if int8 else None
    qkv = empty(2, 48 * size, dtype=dtype).split([32 * size, 8 * size, 8 * size], 1)
    rope = (tables, tables) if rotated else None
    rotary.rotate_and_store(*qkv, rope, empty(2, dtype=I32), cache, cache, scales=scales, interleaved=interleaved)  # fmt: skip


def run_sampling(dtype: torch.dtype) -> None:
    columns = [empty(2, dtype=d) for d in (F32, I32, F32, F32, torch.int64)]
    sampling.sample(empty(2, 128256, dtype=dtype), sampling.Draws(*columns), empty(2, dtype=I32))


def run_quantize(dtype: torch.dtype, channels: int, norm: str, activation: str, gains: torch.dtype | None = None) -> None:  # fmt: skip
    x, gain = empty(8, channels, dtype=dtype), empty(channels, dtype=gains or dtype)
    prologue = Prologue()
    if norm != "none":
        shift = gain if norm == "layer" else None
        prologue = Prologue(norm=norm, weight=gain, bias=shift, eps=1e-5)
    elif activation != "none":
        prologue = Prologue(activation=activation, times=x)
    index, marks = empty(32, dtype=I32), empty(channels, dtype=I8)
    counts = empty(2 + channels, dtype=torch.int64)
    quantize.quantize(x, prologue, index=index, is_outlier=marks, threshold=6.0, counts=counts)


def _half(dtype: torch.dtype) -> str:
    return "fp16" if dtype == F16 else "bf16"


GEMM_VARIANTS: list[tuple[str, int, bool, bool, int]] = [
    ("down", 32, False, True, 64), ("qkv, gate and up", 32, False, False, 128), ("o", 32, False, True, 128),
    ("no columns", 0, False, True, 128), ("biases", 32, True, True, 128),
]  # fmt: skip
"""What models call, by the linear of a Llama: name, outlier columns, bias, residual, channels per scale."""


def variants(kernel: str) -> dict[str, Callable[[Any], None]]:
    """Of a kernel: name -> launch with a configuration; the first is the one that tests compile."""
    found: dict[str, Callable[[Any], None]] = {}

    def add(name: str, run: Callable[..., None], *args: Any, **options: Any) -> None:
        found[name] = lambda row: run(row, *args, **options)

    for dtype in (BF16, F16):
        half = _half(dtype)
        if kernel.startswith("gemm"):
            for channels in (4104,) if "unaligned" in kernel else (4096, 4112):
                for name, *called in GEMM_VARIANTS:
                    add(f"{half} K {channels} {name}", run_gemm, dtype, channels, *called)
        elif kernel.startswith(("gemv", "skinny")):
            for tokens in (1, 16) if kernel == "gemv" else (64, 32):
                for channels in (4104,) if "unaligned" in kernel else (4096, 4112):
                    for activation in ("silu", "none", "gelu"):
                        name = f"{half} M {tokens} K {channels} {activation}"
                        gain = empty(channels, dtype=dtype)
                        if tokens == 1 and activation == "silu":  # what a step launches most
                            rms = Prologue("rms", gain, eps=1e-5)
                            add(f"{name}, rms", run_w8a16, tokens, dtype, channels, activation, rms)
                            add(f"{name}, layer", run_w8a16, tokens, dtype, channels, activation, replace(rms, norm="layer", bias=gain))  # fmt: skip
                        add(name, run_w8a16, tokens, dtype, channels, activation)
        elif kernel == "experts":
            for channels in (4096, 4112):
                for activation in ("silu", "none", "gelu"):
                    add(
                        f"{half} K {channels} {activation}",
                        run_experts,
                        dtype,
                        channels,
                        activation,
                    )
        elif kernel in ("attention", "int8 attention"):
            int8 = kernel != "attention"
            for size in (128, 64, 80, 256):
                add(f"{half} head {size}", run_attention, dtype, size, int8=int8)
            add(
                f"{half} alibi",
                run_attention,
                dtype,
                128,
                int8=int8,
                rotated=0,
                slopes=empty(32, dtype=F32),
            )
            add(
                f"{half} softcap window",
                run_attention,
                dtype,
                128,
                int8=int8,
                softcap=30.0,
                window=4096,
            )
            add(
                f"{half} neighbours, in part",
                run_attention,
                dtype,
                80,
                int8=int8,
                rotated=32,
                interleaved=True,
            )
        elif kernel == "quantize":
            for norm, activation in (("rms", "none"), ("layer", "none"), ("none", "silu"), ("none", "gelu"), ("none", "gelu_tanh"), ("none", "relu"), ("none", "none")):  # fmt: skip
                for channels in (4096, 1000):
                    add(f"{half} {channels} {norm} {activation}", lambda row, *a: run_quantize(*a), dtype, channels, norm, activation)  # fmt: skip
            add(f"{half} rms, gain of 32 bits", lambda row, d: run_quantize(d, 4096, "rms", "none", F32), dtype)  # fmt: skip
        elif kernel in ("rotary", "int8 rotary"):
            for size, rotated, pairs in ((128, 128, False), (80, 32, False), (64, 64, True), (64, 0, False)):  # fmt: skip
                add(f"{half} {size} {rotated} {pairs}", lambda row, *a: run_rotary(*a), dtype, size, rotated, pairs, kernel != "rotary")  # fmt: skip
        else:
            add(half, lambda row, *a: run_sampling(*a), dtype)
    if kernel == "sampling":
        add("fp32", lambda row: run_sampling(F32))
    return found


TABLED = ("gemm", "gemm TMA", "gemm_unaligned", "gemv", "experts", "skinny", "skinny_unaligned", "attention", "int8 attention")  # fmt: skip
TABLE_OF = {"gemm TMA": "gemm", "experts": "gemv", "int8 attention": "attention"}
"""Kernels that run another one's configurations."""
KERNELS = (*TABLED, "quantize", "rotary", "int8 rotary", "sampling")


def _rows(kernel: str, capability: int, subset: bool) -> list[int]:
    """Rows of the table that differ in what is compiled; in the subset, numbers of parts do not count."""
    if kernel not in TABLED:
        return [0]
    if kernel == "gemm TMA" and capability < 90:
        return []
    ignored = {"max_tokens", "max_out", *(("splits",) if subset else ())}
    seen: dict[str, int] = {}
    for i, row in enumerate(configs.shipped(TABLE_OF.get(kernel, kernel), capability)):
        seen.setdefault(str({k: v for k, v in row.items() if k not in ignored}), i)
    return list(seen.values())


ALIKE = {89: 80, 120: 80}
"""GPUs whose tensor cores have another's instructions: of them, the subset has only what takes more shared memory and TMA."""
LARGE = ("gemm", "gemm TMA", "attention")


def cases(subset: bool) -> Iterator[Case]:
    """All launches, or one variant of each configuration."""
    for capability in configs.GENERATIONS:
        for kernel in LARGE if subset and capability in ALIKE else KERNELS:
            for row in _rows(kernel, capability, subset):
                names = list(variants(kernel))
                both = kernel == "gemv" and row == 0  # float16 has bounds of its own
                few = [names[0], names[0].replace("bf16", "fp16")] if both else names[:1]
                for name in few if subset else names:
                    yield Case(kernel, capability, row, name)


def compile_case(case: Case) -> list[Compiled]:
    """Compile what a case launches."""
    table = TABLE_OF.get(case.kernel, case.kernel)
    row = configs.shipped(table, case.capability)[case.row] if case.kernel in TABLED else None
    if case.kernel == "gemm TMA":
        row = configs.with_tma(row)
    with recording(case.capability) as launches:
        variants(case.kernel)[case.variant](row)
    found = []
    for launched in launches:
        b = compile_for(launched, case.capability)
        loops, share = main_loops(b.sass), loop_share(launched)
        found.append(Compiled(
            case, launched.kernel.__name__, b.registers, b.spilled, b.shared,
            loads16=sum(n for op, n in b.ops.items() if op.startswith("LDG.E") and ".128" in op),
            copies=b.count("LDGSTS"), bulk_copies=b.count("UTMALDG"),
            int8_dots=sum(b.count(op) for op in ("IMMA", "IGMMA", "UTCIMMA")),
            half_dots=sum(b.count(op) for op in ("HMMA", "HGMMA", "UTCHMMA")),
            ptx=[s for s in ("mma.sync", "wgmma.mma_async", "tcgen05.mma") if s in b.ptx],
            per_byte=sum(c.total for c in loops) / len(loops) / share if share and loops else None,
            barriers=sum(c.barriers for c in loops), fences=whole(b.sass).fences,
            narrow_loads=sum(n for c in loops for width, n in c.loads.items() if width < 16),
            loop_dots=sorted({op.split(".")[0] for c in loops for op in c.tensor}),
        ))  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subset", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="kernel names, with commas between")
    parser.add_argument("--capability", type=int, help="of one GPU alone")
    options = parser.parse_args()
    wanted = [
        case
        for case in cases(options.subset)
        if (not options.only or case.kernel in options.only.split(","))
        and options.capability in (None, case.capability)
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        for compiled in pool.map(compile_case, wanted, chunksize=4):
            for one in compiled:
                sys.stdout.write(json.dumps(asdict(one)) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
