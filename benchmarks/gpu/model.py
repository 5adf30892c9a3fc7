"""Predicts from machine code what a GPU would do that is not there: nothing here runs on one.

    python -m benchmarks.gpu.model [--gpu A100,H200] [--model Llama-3.1-8B] [--only counts,decode,head,prompt,published,assumptions]

Compiles what models launch (recorded from the real decoder, on meta tensors), with the Triton that is installed (3.6 on), for each
GPU's instruction set; counts what their loops consist of (``sass``), and predicts their times (``predict``, ``totals``) from
the rates and assumptions of ``hardware``. "16 bits" is the same model with each matrix read, or multiplied, in 16 bits with nothing else
in its way; "limit" what memory and tensor cores alone would take.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
import triton
from tabulate import tabulate

from . import totals
from .calls import cache_of, model_of, prompt_of, step_of
from .hardware import ASSUMPTIONS, GPUS, Gpu
from .predict import predict
from .published import MARLIN, compared
from .sass import main_loops, whole
from .totals import SHARE, compiled

CONTEXT = 1024
PROMPT = 2048
Table = tuple[str, list[str], list[list[object]]]


def counts(gpus: Sequence[Gpu], model: str) -> Table:
    """Of every kernel that a step (of 1 and 32 sequences) and a prompt launch."""
    rows: list[list[object]] = []
    for gpu in {gpu.capability: gpu for gpu in gpus}.values():
        for dtype in (torch.float16, torch.bfloat16):
            decoder, seen = model_of(model, dtype, SHARE), set[str]()
            steps = [
                step_of(decoder, cache_of(decoder, batch, CONTEXT, kv), gpu.capability, CONTEXT)
                for batch, kv in ((1, None), (1, torch.int8), (16, None), (32, None))
            ]
            for calls in (*steps, prompt_of(decoder, gpu.capability, tokens=PROMPT)):
                for launched in calls.launches:
                    binary = compiled(launched, gpu.capability)
                    if binary.sass in seen:
                        continue
                    seen.add(binary.sass)
                    found, loops = predict(gpu, launched, binary, CONTEXT), main_loops(binary.sass)
                    everything = whole(binary.sass)
                    rows.append([
                        f"sm_{gpu.capability}", str(dtype)[6:], found.kernel, loops[0].total if loops else "",
                        f"{found.instructions:.2f}" if found.instructions else "", sum(c.barriers for c in loops),
                        " ".join(f"{n} x {w}" for c in loops[:1] for w, n in sorted(c.loads.items())),
                        " ".join(f"{n} {op}" for c in loops[:1] for op, n in c.tensor.items()),
                        everything.fences, everything.total, found.registers, binary.spilled, found.resident,
                    ])  # fmt: skip
    headers = ["GPU", "dtype", "kernel", "loop", "per byte", "barriers", "loads x bytes", "tensor cores", "fences", "all", "registers", "spilled", "programs a core"]  # fmt: skip
    return "Counts", headers, rows


def decode(gpus: Sequence[Gpu], model: str) -> Table:
    rows: list[list[object]] = []
    for gpu in gpus:
        for batch in (1, 8, 32):
            t = totals.step(gpu, model, batch, CONTEXT)
            rows.append([
                gpu.name, batch, t.launches, f"{batch / t.seconds:.0f}", f"{batch / t.half:.0f}", f"{t.half / t.seconds:.2f}",
                f"{batch / t.limit:.0f}", f"{100 * t.limit / t.seconds:.0f} %",
            ])  # fmt: skip
    headers = ["GPU", "batch", "launches", "tok/s", "16 bits", "times", "limit", "share of it"]
    return f"Decode, {model}, {CONTEXT} positions, head in 16 bits", headers, rows


def int8_heads(gpus: Sequence[Gpu], model: str) -> Table:
    """One sequence, beside a head in 16 bits."""
    rows: list[list[object]] = []
    for gpu in gpus:
        half, int8 = (totals.step(gpu, model, 1, CONTEXT, int8_head=head) for head in (False, True))
        rows.append([gpu.name, f"{1 / half.seconds:.0f}", f"{1 / int8.seconds:.0f}", f"{half.seconds / int8.seconds:.2f}"])  # fmt: skip
    return f"Decode, {model}, batch 1, by the head's dtype: tok/s", ["GPU", "16 bits", "int8", "times"], rows  # fmt: skip


def prompts(gpus: Sequence[Gpu], model: str) -> Table:
    rows: list[list[object]] = []
    for gpu in gpus:
        t = totals.prompt(gpu, model, PROMPT)
        rows.append([
            gpu.name, f"{1e3 * t.seconds:.0f}", f"{1e3 * t.half:.0f}", f"{t.half / t.seconds:.2f}", f"{1e3 * t.linears:.0f}",
            f"{1e3 * t.linears_half:.0f}", f"{t.linears_half / t.linears:.2f}", f"{1e3 * t.limit:.0f}",
        ])  # fmt: skip
    headers = ["GPU", "ms", "16 bits", "times", "linears, quantizers included", "16 bits", "times", "limit"]  # fmt: skip
    return f"A prompt of {PROMPT} tokens, {model}", headers, rows


def published(_gpus: Sequence[Gpu], _model: str) -> Table:
    rows: list[list[object]] = [[*r[:2], r[2], f"{r[3]:.1f}", f"{r[4]:.2f}"] for r in compared()]
    step = totals.step(GPUS[0], "Llama-3.1-8B", 16, CONTEXT)
    times = step.linears_half / step.linears
    rows.append(["layer of Llama-3.1-8B, 16 tokens", "W8A16 against fp16", MARLIN, f"{times:.2f}", f"{times / MARLIN:.2f}"])  # fmt: skip
    return "Against published figures, A100: tok/s of gpt-fast; times of Marlin's manner", ["model", "weights", "measured", "predicted", "ratio"], rows  # fmt: skip


def assumptions(_gpus: Sequence[Gpu], _model: str) -> Table:
    return "Assumptions", ["name", "value", "what", "corrected by"], [list(row) for row in ASSUMPTIONS]  # fmt: skip


SECTIONS: dict[str, Callable[[Sequence[Gpu], str], Table]] = {
    "assumptions": assumptions, "published": published, "decode": decode, "head": int8_heads, "prompt": prompts, "counts": counts,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", default=",".join(gpu.name for gpu in GPUS))
    parser.add_argument("--model", default="Llama-3.1-8B", choices=["Llama-3.1-8B", "Llama-3.1-70B"])  # fmt: skip
    parser.add_argument("--only", default=",".join(SECTIONS))
    options = parser.parse_args(arguments)
    gpus = [gpu for gpu in GPUS if gpu.name in options.gpu.split(",")]
    print(f"Predicted from machine code of Triton {triton.__version__}; nothing was run on a GPU.")
    for name in options.only.split(","):
        title, headers, rows = SECTIONS[name](gpus, options.model)
        print(f"\n### {title}\n\n" + tabulate(rows, headers, "github", disable_numparse=True), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
